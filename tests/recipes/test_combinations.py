"""NeVA's parts combined: each nano row is put together, trained, exported and imported again."""

import json
import os
from itertools import product

import pytest

from tests.recipes.llava_parents import LANGUAGES, TOWERS, write_language, write_tower
from tests.recipes.steps import steps_of

PROJECTORS = ("mlp2x_gelu", "affine", "mlp_downsample_2x2_fix", "mlp_downsample_3x3_fix")
STEPS = 5
ALL = list(product(LANGUAGES, PROJECTORS, TOWERS))
# Every pair of two parts is in one of these; ALL_COMBINATIONS=1 takes all eighty.
PAIRWISE = [
    (language, projector, TOWERS[(i + j) % len(TOWERS)])
    for i, language in enumerate(LANGUAGES)
    for j, projector in enumerate(PROJECTORS)
]
CHOSEN = ALL if os.environ.get("ALL_COMBINATIONS") else PAIRWISE
NAMES = ["-".join(one) for one in CHOSEN]


def test_every_pair_of_parts_is_trained():
    for one, two in ((0, 1), (0, 2), (1, 2)):
        assert {(row[one], row[two]) for row in PAIRWISE} == {(row[one], row[two]) for row in ALL}


@pytest.fixture(scope="module")
def trained(nano_start, run_training, tmp_path_factory):
    """The folder of the runs, each in a folder with its name."""
    from converters.assemble import assemble
    from converters.llava_assembly import LlavaAssembly
    from launch.quickstart.parents import train_plain_tokenizer

    folder = tmp_path_factory.mktemp("combinations")
    tokenizer = train_plain_tokenizer("v1")
    for language in LANGUAGES:
        write_language(language, folder / language, tokenizer)
    for tower in TOWERS:
        write_tower(tower, folder / tower)
    runs = []
    for name, (language, projector, tower) in zip(NAMES, CHOSEN, strict=True):
        rules = LlavaAssembly(conversation_template="v1", projector_type=projector)
        assemble(folder / language, folder / tower, folder / "start" / name, rules)
        runs.append(
            {
                "family": "llava",
                "size": LANGUAGES[language],
                "vision": tower,
                "projector": projector,
                "dir": str(folder / "runs"),
                "name": name,
                "init_from": str(folder / "start" / name),
                "train_paths": nano_start["train_paths"],
                "image_folder": nano_start["image_folder"],
                "steps": STEPS,
                "save_every": STEPS,
            }
        )
    run_training(runs)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", NAMES)
def test_a_combination_trains_and_comes_back(name, trained, single_process, tmp_path):
    from converters.export_hf import export_checkpoint
    from converters.import_hf import import_checkpoint
    from converters.verify import verify_checkpoint
    from models.checkpoint_paths import find_checkpoint

    steps = steps_of(trained / "runs", name)
    assert len(steps) == STEPS
    assert steps[-1]["loss"] < steps[0]["loss"]
    checkpoint = find_checkpoint(trained / "runs" / name)
    export_checkpoint(checkpoint, tmp_path / "exported")
    family = "llava" if "mlp2x_gelu" in name else "neva"
    import_checkpoint(family, tmp_path / "exported", tmp_path / "imported")
    result = verify_checkpoint(tmp_path / "exported", tmp_path / "imported")
    assert result.passed, result.to_dict()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_an_export_with_code_answers_questions(trained, nano_start, tmp_path):
    """Its processor puts in as many positions as the projector makes, in batches too."""
    from converters.export_hf import export_checkpoint
    from launch.__main__ import main
    from models.checkpoint_paths import find_checkpoint

    name = "llama-mlp_downsample_2x2_fix-internvit"
    out = tmp_path / "exported"
    export_checkpoint(find_checkpoint(trained / "runs" / name), out)
    data = ["--data", nano_start["train_paths"][0], "--image-folder", nano_start["image_folder"]]
    arguments = ["eval", "--hf", str(out), "--task", "exact_match", *data, "--limit", "12"]
    assert main([*arguments, "--json", str(tmp_path / "done.json")]) == 0
    assert json.loads((tmp_path / "done.json").read_text())["questions"] == 12
    # Code that is not ours is not run unasked.
    (out / "modeling_neva_llava.py").write_text("import os\n")
    assert main(arguments) == 2

"""Real preference trainings in processes of their own: reference, layouts, resume, margins."""

import json
import math
import signal

import pytest

from tests.recipes.steps import assert_same_steps, steps_of

STEPS = 6
BASE = {"stage": "preference", "steps": STEPS, "save_every": 2}
LAYOUTS = {
    "llava_tp2_sp": (
        "llava",
        {"strategy": {"tensor_model_parallel_size": 2, "sequence_parallel": True}},
    ),
    "llava_pp2": ("llava", {"strategy": {"pipeline_model_parallel_size": 2}}),
    "llava_dp2_overlapped": (
        "llava",
        {"ddp": {"overlap_grad_reduce": True, "overlap_param_gather": True}},
    ),
    "nvila_dora_tp2": ("nvila_dora", {"strategy": {"tensor_model_parallel_size": 2}}),
}


def write_preferences(folder, images):
    """Digits: an answer is chosen, and the refusal to give one rejected; 24 images are held out."""
    records = sorted(path.name for path in images.glob("train_*.jpg"))[:120]
    assert len(records) == 120
    for name, names in (("train", records[:96]), ("held_out", records[96:])):
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for number, image in enumerate(names):
                turns = [{"from": "human", "value": "<image>\nこの画像の数字は何ですか?"}]
                answers = {
                    "chosen": "数字です。",
                    "rejected": "分かりません。" + "。" * (number % 3),
                }
                file.write(json.dumps({"image": image, "conversations": turns} | answers) + "\n")


@pytest.fixture(scope="module")
def starts(nano_start, nano_llava_starts, tmp_path_factory):
    from pathlib import Path

    folder = tmp_path_factory.mktemp("preferences")
    write_preferences(folder, Path(nano_start["image_folder"]))
    data = {
        "train_paths": [str(folder / "train.jsonl")],
        "image_folder": nano_start["image_folder"],
        "data": {"validation_paths": [str(folder / "held_out.jsonl")]},
        "trainer": {"val_check_interval": 2},  # as often as a checkpoint is written
    }
    nvila = {"family": "nvila", "init_from": nano_start["init_from"]}
    llava = {"family": "llava", "init_from": nano_llava_starts["llava"]["init_from"]}
    return {
        "llava": BASE | data | llava,
        "nvila_lora": BASE | data | nvila | {"peft_scheme": "lora"},
        "nvila_dora": BASE | data | nvila | {"peft_scheme": "dora"},
    }


@pytest.fixture(scope="module")
def trained(starts, run_training, tmp_path_factory):
    """The folder of all runs; one was killed and resumed."""
    folder = tmp_path_factory.mktemp("preference_runs")
    common = {"dir": str(folder)}
    packed = {"data": starts["llava"]["data"] | {"packing_buffer_size": 8}}
    killed = starts["nvila_dora"] | common | {"name": "killed"}
    assert run_training([killed | {"kill_at_step": 5}], check=False) == -signal.SIGKILL
    run_training(
        [
            *(starts[name] | common | {"name": name} for name in starts),
            killed,
            starts["llava"] | common | packed | {"name": "packed", "steps": 2},
            starts["llava"]
            | common
            | {"name": "reference_free", "steps": 2, "objective": {"reference_free": True}},
        ]
    )
    parallel = [
        starts[start] | common | {"name": name} | layout
        for name, (start, layout) in LAYOUTS.items()
    ]
    run_training(parallel, num_processes=2)
    return folder


def validations(folder, name):
    path = folder / name / "log" / "validation.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", ["llava", "nvila_lora", "nvila_dora"])
def test_the_model_starts_as_its_reference_and_learns_to_prefer(trained, name):
    steps = steps_of(trained, name)
    assert len(steps) == STEPS
    assert steps[0]["preference_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert steps[0]["preference_margin"] == pytest.approx(0, abs=1e-5)
    assert steps[0]["loss"] == steps[0]["preference_loss"]
    # The adapters' rate is the same, and they move the model less.
    assert steps[-1]["preference_loss"] < steps[0]["preference_loss"] - 0.005
    assert all(row["sft_loss"] > 0 for row in steps)
    # On pairs that it has never seen.
    first, middle, last = validations(trained, name)
    assert (first["step"], middle["step"], last["step"]) == (2, 4, 6)
    assert first["pairs"] == middle["pairs"] == last["pairs"] == 24
    assert last["preference_margin"] > first["preference_margin"] > 0
    assert last["preference_accuracy"] == 1.0


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_do_not_change_it(trained, name):
    reference, _ = LAYOUTS[name]
    whole, other = steps_of(trained, reference), steps_of(trained, name)
    assert len(other) == STEPS
    figures = dict.fromkeys(("preference_loss", "sft_loss"), 1e-4)
    assert_same_steps(whole, other, loss=1e-4, grad_norm=1e-3, **figures)
    for one, two in zip(validations(trained, reference), validations(trained, name), strict=True):
        assert two == pytest.approx(one, rel=1e-3)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_resumed_run_has_the_reference_of_its_start(trained):
    """Of the adapters and of the projector, which trains in full."""
    whole, resumed = steps_of(trained, "nvila_dora"), steps_of(trained, "killed")
    assert len(resumed) == STEPS
    figures = dict.fromkeys(("preference_loss", "sft_loss"), 1e-6)
    assert_same_steps(whole, resumed, loss=1e-6, grad_norm=1e-5, samples=0, **figures)
    for one, two in zip(
        validations(trained, "nvila_dora"), validations(trained, "killed"), strict=True
    ):
        assert two == pytest.approx(one, rel=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_packed_pairs_and_no_reference(trained):
    packed = steps_of(trained, "packed")
    assert packed[0]["preference_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert packed[1]["preference_margin"] > 0
    free = steps_of(trained, "reference_free")
    # An untrained model prefers shorter answers, so its margin is not 0.
    assert abs(free[0]["preference_margin"]) > 1e-3


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_margin_is_that_of_the_exported_models(trained, starts, single_process, tmp_path):
    """The last validation, computed by transformers from the exports of start and end."""
    from pathlib import Path

    import torch
    from PIL import Image
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    from converters.export_hf import export_checkpoint
    from models.checkpoint_paths import find_checkpoint

    sums = {}
    for kind, checkpoint in (("start", starts["llava"]["init_from"]), ("end", trained / "llava")):
        out = tmp_path / kind
        export_checkpoint(find_checkpoint(checkpoint), out)
        model = LlavaForConditionalGeneration.from_pretrained(out, torch_dtype=torch.float32).eval()
        processor = AutoProcessor.from_pretrained(out)
        sums[kind] = []
        path = Path(starts["llava"]["data"]["validation_paths"][0])
        for line in path.read_text().splitlines():
            record = json.loads(line)
            image = Image.open(Path(starts["llava"]["image_folder"]) / record["image"]).convert(
                "RGB"
            )
            question = record["conversations"][0]["value"].removeprefix("<image>\n")
            content = [{"type": "image"}, {"type": "text", "text": question}]
            prompt = processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True
            )
            for answer in (record["chosen"], record["rejected"]):
                sums[kind].append(log_probability(model, processor, image, prompt, answer))
    gained = [end - start for start, end in zip(sums["start"], sums["end"], strict=True)]
    margins = [0.1 * (one - two) for one, two in zip(gained[::2], gained[1::2], strict=True)]
    last = validations(trained, "llava")[-1]
    assert last["preference_margin"] == pytest.approx(sum(margins) / len(margins), rel=1e-3)


def log_probability(model, processor, image, prompt, answer):
    import torch

    closing = processor.tokenizer.eos_token
    whole = processor(images=image, text=f"{prompt} {answer}{closing}", return_tensors="pt")
    begun = processor(images=image, text=prompt, return_tensors="pt")
    with torch.no_grad():
        logits = model(**whole).logits[0].log_softmax(-1)
    ids = whole["input_ids"][0]
    first = begun["input_ids"].shape[1]
    assert torch.equal(ids[:first], begun["input_ids"][0])
    places = torch.arange(first - 1, len(ids) - 1)
    return float(logits[places, ids[first:]].sum())

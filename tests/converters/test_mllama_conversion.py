"""Whole MLlama directories through real checkpoints: import, export, verify."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.usefixtures("single_process")

OTHER_SHAPE = {
    "image_size": 40,
    "patch_size": 8,
    "max_tiles": 3,
    "vision_width": 32,
    "vision_heads": 2,
    "vision_layers": 3,
    "global_layers": 1,
    "tapped_layers": (0, 2, 3),
    "text_width": 96,
    "text_heads": 6,
    "text_kv_heads": 3,
    "text_layers": 4,
    "cross_layers": (0, 2),
}
VARIANTS = {
    "fp32": {},
    "bf16": {"dtype": torch.bfloat16, "in_memory_names": True},
    "fp16": {"dtype": torch.float16, "text_kv_heads": 1},
    "other_shape": OTHER_SHAPE,
}
FILES = {
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
}
# Runs outside of the repository, without network: only transformers can be imported.
LOAD_AND_ANSWER = """
import json, sys
import numpy as np
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
directory, answer_file = sys.argv[1:]
processor = AutoProcessor.from_pretrained(directory)
model, report = AutoModelForImageTextToText.from_pretrained(directory, output_loading_info=True)
assert not any(report.values()), report
pixels = np.random.default_rng(0).integers(0, 256, (70, 150, 3), dtype=np.uint8)
messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "3?"}]}]
text = processor.apply_chat_template(messages, add_generation_prompt=True)
inputs = processor(Image.fromarray(pixels), text, add_special_tokens=False, return_tensors="pt")
result = {
    "text": text,
    "answer": model.generate(**inputs, max_new_tokens=6, do_sample=False)[0].tolist(),
    "modules": [type(model).__module__, type(processor).__module__],
    "ours": [name for name in sys.modules if name.split(".")[0] in ("models", "converters")],
}
with open(answer_file, "w") as file:
    json.dump(result, file)
"""


@pytest.fixture(scope="module")
def converted(write_nano_mllama, tmp_path_factory, nemo):
    """Each variant as (model, Hugging Face directory, checkpoint)."""
    from converters.import_hf import import_checkpoint

    made = {}

    def convert(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            model = write_nano_mllama(folder / "hf", **VARIANTS[name])
            import_checkpoint("mllama", folder / "hf", folder / "ckpt")
            made[name] = (model, folder / "hf", folder / "ckpt")
        return made[name]

    return convert


@pytest.fixture
def copied(converted, tmp_path):
    """A directory of the fp32 variant that may be changed."""
    shutil.copytree(converted("fp32")[1], tmp_path / "hf")
    return tmp_path / "hf"


def refuse(hf, out, match):
    """Importing ends with the sentence and leaves nothing behind."""
    from converters.import_hf import import_checkpoint

    before = sorted(out.parent.iterdir())
    with pytest.raises(ValueError, match=match) as caught:
        import_checkpoint("mllama", hf, out)
    assert sorted(out.parent.iterdir()) == before
    return str(caught.value)


@pytest.mark.parametrize("name", VARIANTS)
def test_import_then_export_gives_back_every_bit(converted, name, tmp_path):
    from converters.export_hf import export_checkpoint
    from converters.lazy import HeldTensor, same_bits
    from converters.mllama import STYLES

    model, _, checkpoint = converted(name)
    figures = export_checkpoint(checkpoint, tmp_path / "out")
    before = STYLES.disk_names(model.state_dict())
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert before.keys() == after.keys()
    assert figures["tensors"] == len(before)
    assert [
        key for key in before if not same_bits(HeldTensor(before[key]), HeldTensor(after[key]))
    ] == []
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES | {"SHA256SUMS"}
    dtype = str(VARIANTS[name].get("dtype", torch.float32)).removeprefix("torch.")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    for part in (config, config["text_config"], config["vision_config"]):
        assert part["torch_dtype"] == dtype
    assert config["architectures"] == ["MllamaForConditionalGeneration"]
    # The vocabulary of the fixture is odd, so both tables were padded on the way.
    vocabulary = config["text_config"]["vocab_size"]
    assert vocabulary % 128
    assert after["language_model.lm_head.weight"].shape[0] == vocabulary
    assert after["language_model.model.embed_tokens.weight"].shape[0] == vocabulary + 8


@pytest.mark.parametrize("name", ["fp32", "fp16", "other_shape"])
def test_logits_of_both_models_agree(converted, name):
    from converters.verify import verify_checkpoint

    _, hf, checkpoint = converted(name)
    result = verify_checkpoint(hf, checkpoint)
    assert result.passed
    kinds = {"one_image", "two_images", "wide_image", "text_only"}
    assert set(result.logit_differences) == kinds
    assert max(result.logit_differences.values()) <= 1e-4


def test_every_tensor_moves_the_logits_of_a_prompt(converted):
    """Otherwise equal logits would prove nothing about it."""
    from transformers import AutoProcessor

    from converters.mllama_family import MllamaFamily

    model, hf, _ = converted("fp32")
    processor = AutoProcessor.from_pretrained(hf)
    prompts = MllamaFamily().prompts(processor, model.config)
    prompt = prompts["two_images"]
    inputs = processor(text=prompt.text, images=list(prompt.images), return_tensors="pt")
    assert inputs["aspect_ratio_mask"].sum(dim=-1).tolist() == [[1, 2]]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        before = model(**inputs).logits
        assert 1 < before.abs().max() < 1000
        for name, parameter in model.named_parameters():
            kept = parameter.clone()
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
            moved = (model(**inputs).logits - before).abs().max()
            parameter.copy_(kept)
            assert moved > 1e-3, name


def test_verify_sees_one_flipped_bit_and_a_changed_logit(converted, copied, change_weights):
    from converters.verify import verify_checkpoint

    _, _, checkpoint = converted("fp32")
    name = "language_model.model.layers.3.cross_attn_mlp_gate"

    def flip(tensors):
        tensors[name].view(torch.int32)[0] ^= 1

    change_weights(copied, flip)
    result = verify_checkpoint(copied, checkpoint, logits=False)
    assert result.different_tensors == (name,)
    assert not result.passed

    def move(tensors):
        tensors[name] += 0.1

    change_weights(copied, move)
    result = verify_checkpoint(copied, checkpoint)
    assert result.logit_differences["one_image"] > 1e-4
    assert result.logit_differences["text_only"] <= 1e-4  # cross layers do nothing there
    assert not result.passed


def test_the_export_works_with_transformers_alone(converted, tmp_path):
    import numpy as np
    from PIL import Image
    from transformers import AutoProcessor, GenerationConfig

    from converters.export_hf import export_checkpoint

    model, hf, checkpoint = converted("fp32")
    export_checkpoint(checkpoint, tmp_path / "v1.0")  # no code inside, so dots are no obstacle
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(
        [sys.executable, "-P", "-c", LOAD_AND_ANSWER, tmp_path / "v1.0", tmp_path / "answer.json"],
        cwd=tmp_path,
        env=environment | {"HF_HUB_OFFLINE": "1"},
        check=True,
    )
    result = json.loads((tmp_path / "answer.json").read_text())
    assert result["ours"] == []
    assert all(name.startswith("transformers.models.mllama.") for name in result["modules"])
    # The same question to the model that was written, here.
    processor = AutoProcessor.from_pretrained(hf)
    pixels = np.random.default_rng(0).integers(0, 256, (70, 150, 3), dtype=np.uint8)
    inputs = processor(
        Image.fromarray(pixels), result["text"], add_special_tokens=False, return_tensors="pt"
    )
    model.generation_config = GenerationConfig.from_pretrained(hf)
    expected = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0].tolist()
    assert result["answer"] == expected


def test_files_that_came_with_the_model_leave_with_it(converted, tmp_path):
    from converters.export_hf import export_checkpoint

    _, hf, checkpoint = converted("fp32")
    export_checkpoint(checkpoint, tmp_path / "out")
    for name in ("tokenizer.json", "preprocessor_config.json", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (hf / name).read_bytes(), name


def test_the_vila_layout_is_nvilas_alone(converted, tmp_path):
    from converters.export_hf import export_checkpoint

    with pytest.raises(ValueError, match="'vila' does not exist for mllama; allowed are hf"):
        export_checkpoint(converted("fp32")[2], tmp_path / "out", layout="vila")
    assert list(tmp_path.iterdir()) == []


def test_other_cross_attention_layers_than_config_says(copied, tmp_path, change_json):
    def with_layers(*layers):
        change_json(
            copied / "config.json",
            lambda content: content["text_config"].update(cross_attention_layers=list(layers)),
        )

    with_layers(1, 2, 3)
    refuse(
        copied,
        tmp_path / "out",
        "cross-attention in the layers 1 to 3, but the tensors have 1, 3",
    )
    with_layers(3)
    refuse(copied, tmp_path / "out", "the layers 3, but the tensors have 1, 3")
    with_layers(1, 3)
    change_json(
        copied / "config.json",
        lambda content: content["text_config"].update(num_hidden_layers=6),
    )
    refuse(copied, tmp_path / "out", "says layers 0 to 5, but the tensors have 0 to 4")


def test_a_checkpoint_whose_assets_are_another_models(converted, tmp_path, change_json):
    from converters.export_hf import export_checkpoint
    from converters.verify import verify_checkpoint

    _, hf, checkpoint = converted("fp32")
    shutil.copytree(checkpoint, tmp_path / "ckpt")
    assets = tmp_path / "ckpt" / "context" / "assets"
    change_json(
        assets / "config.json",
        lambda content: content["text_config"].update(cross_attention_layers=[1]),
    )
    sentence = "do not fit its context/assets/config.json: .*layers.3.self_attention.* is missing"
    for call in (
        lambda: export_checkpoint(tmp_path / "ckpt", tmp_path / "out"),
        lambda: verify_checkpoint(hf, tmp_path / "ckpt", logits=False),
    ):
        with pytest.raises(ValueError, match=sentence):
            call()
    assert [path.name for path in tmp_path.iterdir()] == ["ckpt"]


def test_sizes_that_the_tensors_do_not_have(copied, tmp_path, change_json):
    change_json(
        copied / "config.json",
        lambda content: content["text_config"].update(intermediate_size=100),
    )
    refuse(
        copied,
        tmp_path / "out",
        r"linear_fc1.weight has shape \[192, 64\], expected \[200, 64\]",
    )


@pytest.mark.parametrize(
    ("part", "change", "sentence"),
    [
        ("text_config", {"tie_word_embeddings": True}, "tie_word_embeddings"),
        ("text_config", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_scaling"),
        ("text_config", {"hidden_act": "gelu"}, "hidden_act: 'gelu' of text_config"),
        ("vision_config", {"hidden_act": "silu"}, "hidden_act: 'silu' of vision_config"),
        ("vision_config", {"vision_output_dim": 7}, "vision_output_dim: 7"),
        ("vision_config", {"image_size": 112}, "size .* does not fit image_size"),
        ("vision_config", {"max_num_tiles": 2}, "max_image_tiles 4 .* does not fit max_num_tiles"),
    ],
)
def test_what_this_model_does_not_have(copied, tmp_path, change_json, part, change, sentence):
    change_json(copied / "config.json", lambda content: content[part].update(change))
    refuse(copied, tmp_path / "out", sentence)


def test_missing_surplus_mixed_and_quantised_tensors(copied, tmp_path, change_weights):
    untouched = load_file(copied / "model.safetensors")
    gate = "language_model.model.layers.1.cross_attn_attn_gate"
    cases = {
        f"missing: {gate}; not in the table: stranger": lambda tensors: {
            name: tensor for name, tensor in tensors.items() if name != gate
        }
        | {"stranger": torch.zeros(1)},
        "mix two styles of names: lm_head.weight beside": lambda tensors: {
            name.replace("language_model.lm_head", "lm_head"): tensor
            for name, tensor in tensors.items()
        },
        "tensors of type bfloat16, float32": lambda tensors: tensors
        | {gate: tensors[gate].bfloat16()},
        "tensors of type int8": lambda tensors: {
            name: tensor.to(torch.int8) for name, tensor in tensors.items()
        },
    }
    for sentence, change in cases.items():
        change_weights(copied, change)
        refuse(copied, tmp_path / "out", sentence)
        save_file(untouched, copied / "model.safetensors", metadata={"format": "pt"})


def test_missing_and_damaged_shards(copied, tmp_path):
    weights = load_file(copied / "model.safetensors")
    (copied / "model.safetensors").unlink()
    refuse(copied, tmp_path / "out", "neither model.safetensors nor model.safetensors.index.json")
    names = sorted(weights)
    files = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for file, members in zip(files, (names[:70], names[70:]), strict=True):
        save_file({name: weights[name] for name in members}, copied / file)
    index = {name: files[name in names[70:]] for name in names}
    (copied / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    whole = (copied / files[1]).read_bytes()
    (copied / files[1]).write_bytes(whole[: len(whole) // 2])
    refuse(copied, tmp_path / "out", f"{files[1]} is damaged")
    (copied / files[1]).unlink()
    refuse(copied, tmp_path / "out", f"lacks {files[1]}, which model.safetensors.index.json names")
    (copied / "model.safetensors.index.json").write_text('{"weight_map": {')
    refuse(copied, tmp_path / "out", "model.safetensors.index.json is damaged")


def test_a_large_export_is_sharded_with_an_index(converted, tmp_path, monkeypatch):
    from transformers import AutoModelForImageTextToText

    from converters.export_hf import export_checkpoint
    from converters.verify import verify_checkpoint

    model, _, checkpoint = converted("fp32")
    monkeypatch.setattr("converters.hf_weights.MAX_SHARD_SIZE", "500KB")
    export_checkpoint(checkpoint, tmp_path / "out")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    assert verify_checkpoint(tmp_path / "out", checkpoint, logits=False).passed
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    expected = model.state_dict()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_an_output_that_is_not_empty_and_another_family(converted, tmp_path):
    from converters.export_hf import export_checkpoint
    from converters.import_hf import import_checkpoint

    _, hf, checkpoint = converted("fp32")
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match="exists and is not empty"):
        import_checkpoint("mllama", hf, tmp_path)
    with pytest.raises(ValueError, match="exists and is not empty"):
        export_checkpoint(checkpoint, tmp_path)
    with pytest.raises(ValueError, match="holds a model of type 'mllama'; nvila_lite is expected"):
        import_checkpoint("nvila", hf, tmp_path / "out")
    with pytest.raises(
        ValueError, match="family: 'gpt' is unknown; allowed are nvila, mllama, llava"
    ):
        import_checkpoint("gpt", hf, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]

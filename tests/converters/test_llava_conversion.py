"""LLaVA directories of several ages through import, verify and export."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, LlavaForConditionalGeneration

from launch.quickstart.llava_parent import LlavaShape, train_llava_tokenizer, write_llava

pytestmark = pytest.mark.usefixtures("nemo")


@pytest.fixture(scope="module")
def tokenizer():
    return train_llava_tokenizer()


@pytest.fixture
def write(tokenizer, tmp_path):
    """Writes a directory with large random weights, so that every part moves the logits."""

    def write(**shape):
        folder = tmp_path / "hf"
        write_llava(folder, tokenizer, LlavaShape(**shape))
        model = LlavaForConditionalGeneration.from_pretrained(folder)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.normal_(0.0, 0.2, generator=generator)
                if parameter.ndim == 1 and name.endswith("weight"):  # of a norm
                    parameter.add_(1.0)
        model.save_pretrained(folder)
        return folder

    return write


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"text_kv_heads": 2, "tied": True, "vision_layers": 4, "image_size": 70},
        {"vision": "siglip", "text": "qwen2", "text_kv_heads": 2},
        {"text": "mistral", "text_kv_heads": 2},
        {"text": "gpt2", "max_positions": 512},
        {"text": "nemotron", "text_kv_heads": 2},
        {"vision": "siglip", "siglip_head": True, "siglip_strategy": "default", "text": "gpt2"}
        | {"tied": True, "max_positions": 512},
    ],
)
def test_there_and_back(write, shape, tmp_path):
    from converters.export_hf import export_checkpoint
    from converters.import_hf import import_checkpoint
    from converters.verify import verify_checkpoint

    hf = write(**shape)
    import_checkpoint("llava", hf, tmp_path / "nemo")
    found = verify_checkpoint(hf, tmp_path / "nemo")
    assert found.passed, found
    assert len(found.logit_differences) == 4
    export_checkpoint(tmp_path / "nemo", tmp_path / "out")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("hf", "out"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    model = LlavaForConditionalGeneration.from_pretrained(tmp_path / "out")
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    inputs = processor(text="<image> a", images=[blank(model)], return_tensors="pt")
    with torch.no_grad():
        assert model(**inputs).logits.shape[1] == inputs["input_ids"].shape[1]


def blank(model):
    from PIL import Image

    return Image.new("RGB", (model.config.vision_config.image_size,) * 2)


def test_files_of_older_versions(write, tmp_path, change_weights):
    """Names as in memory, constants as tensors, and a processor that knows nothing of the model."""
    from converters.import_hf import import_checkpoint
    from converters.llava import STYLES
    from converters.verify import verify_checkpoint

    hf = write()
    (hf / "processor_config.json").write_text('{"processor_class": "LlavaProcessor"}')

    def age(tensors):
        renamed = {STYLES.module_name(name): tensor for name, tensor in tensors.items()}
        renamed["model.vision_tower.vision_model.embeddings.position_ids"] = torch.arange(17)
        frequencies = torch.ones(16)
        for layer in range(2):
            name = f"model.language_model.layers.{layer}.self_attn.rotary_emb.inv_freq"
            renamed[name] = frequencies.clone()
        return renamed

    change_weights(hf, age)
    import_checkpoint("llava", hf, tmp_path / "nemo")
    assets = tmp_path / "nemo" / "context" / "assets"
    processor = AutoProcessor.from_pretrained(assets)
    inputs = processor(text="<image>", images=[_image()], return_tensors="pt")
    assert (inputs["input_ids"] == processor.image_token_id).sum() == 16
    assert json.loads((assets / "processor_config.json").read_text())["patch_size"] == 14
    found = verify_checkpoint(hf, tmp_path / "nemo", logits=False)
    assert found.passed, found


def _image():
    from PIL import Image

    return Image.new("RGB", (90, 60))


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (
            "processor_config.json",
            {"patch_size": 16},
            "patch_size 16 in processor_config.json of .* asks for 14",
        ),
        (
            "config.json",
            {"image_token_index": 5},
            "id of <image> .* does not fit image_token_index",
        ),
        (
            "preprocessor_config.json",
            {"crop_size": {"height": 28, "width": 28}},
            "crop_size .* does not fit image_size",
        ),
    ],
)
def test_files_that_do_not_fit_each_other_are_refused(
    file, change, message, tokenizer, tmp_path, change_json
):
    from converters.import_hf import import_checkpoint

    write_llava(tmp_path / "hf", tokenizer)
    change_json(tmp_path / "hf" / file, lambda content: content.update(change))
    with pytest.raises(ValueError, match=message):
        import_checkpoint("llava", tmp_path / "hf", tmp_path / "nemo")
    assert not (tmp_path / "nemo").exists()


def test_a_missing_and_a_surplus_tensor_are_named(tokenizer, tmp_path):
    from converters.import_hf import import_checkpoint

    write_llava(tmp_path / "hf", tokenizer)
    path = tmp_path / "hf" / "model.safetensors"
    tensors = load_file(path)
    tensors["vision_tower.vision_model.other"] = tensors.pop("multi_modal_projector.linear_1.bias")
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"missing: multi_modal_projector.linear_1.bias; not in .*model.other"
    ):
        import_checkpoint("llava", tmp_path / "hf", tmp_path / "nemo")

"""LoRA and DoRA of the families with image slots, merged and as adapters that peft loads.

What an export computes is held to the Megatron-Core model with its adapters.
"""

import json

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from launch.quickstart.llava_parent import LlavaShape, train_llava_tokenizer, write_llava

SHAPES = {
    "llava-llama": LlavaShape(text_kv_heads=2),
    "llava-gpt2": LlavaShape(vision="siglip", text="gpt2", tied=True, max_positions=512),
}
QKV_ONLY = ["*.language_model.*.linear_qkv"]


@pytest.fixture(scope="module", params=["nvila", *SHAPES])
def base(request, quickstart_sources, single_process, tmp_path_factory):
    """(name of the family, Hugging Face directory, the same as a NeMo checkpoint)."""
    from converters.import_hf import import_checkpoint

    folder = tmp_path_factory.mktemp("base")
    family = request.param.partition("-")[0]
    hf = quickstart_sources / "nvila"
    if family == "llava":
        hf = folder / "hf"
        write_llava(hf, train_llava_tokenizer(), SHAPES[request.param])
        # GPT-2 would add what this tokenizer returns of itself.
        path = hf / "tokenizer_config.json"
        names = {"model_input_names": ["input_ids", "attention_mask"]}
        path.write_text(json.dumps(json.loads(path.read_text()) | names))
    import_checkpoint(family, hf, folder / "nemo")
    return family, hf, folder / "nemo"


def load(directory, family):
    return AutoModelForImageTextToText.from_pretrained(
        directory, trust_remote_code=family == "nvila", torch_dtype=torch.float32
    ).eval()


@pytest.fixture(scope="module", params=["all", "qkv", "dora"])
def adapted(base, request, tmp_path_factory):
    """A checkpoint with adapters, a trained projector too, and its logits by kind of prompt."""
    from converters.finished import open_checkpoint
    from tests.adapted_model import load_adapted, write_adapted

    family_name, hf, nemo = base
    folder = tmp_path_factory.mktemp("lora") / "ckpt"
    options = {
        "all": {},
        "qkv": {"target_modules": QKV_ONLY},
        "dora": {"kind": "dora"},
    }[request.param]
    family, assets = open_checkpoint(nemo)
    (projector,) = (
        row.megatron_key
        for row in family.table(assets)
        if row.megatron_key.startswith("vision_projection.")
        and row.megatron_key.endswith(("linear_2.bias", "layers.4.bias"))
    )
    write_adapted(folder, nemo, trained=(projector,), dim=4, alpha=8, **options)
    processor = AutoProcessor.from_pretrained(hf, trust_remote_code=family_name == "nvila")
    prompts = family.prompts(processor, load(hf, family_name).config)
    module = load_adapted(folder).module.eval()
    wanted = {}
    for kind, prompt in prompts.items():
        inputs = processor(
            text=prompt.text, images=list(prompt.images) or None, return_tensors="pt"
        )
        with torch.no_grad():
            wanted[kind] = (inputs, module(**family.model_inputs(processor, inputs)))
    return folder, wanted


def assert_same(model, wanted, plain):
    for kind, (inputs, logits) in wanted.items():
        with torch.no_grad():
            found, without = model(**inputs).logits, plain(**inputs).logits
        assert (found - logits).abs().max() <= 1e-4, kind
        assert (found - without).abs().max() > 0.05, kind  # else equal logits would say nothing


def test_merged(base, adapted, tmp_path):
    from converters.export_hf import export_checkpoint

    family, hf, _ = base
    folder, wanted = adapted
    export_checkpoint(folder, tmp_path / "merged")
    assert_same(load(tmp_path / "merged", family), wanted, load(hf, family))


def test_peft_loads_the_adapters(base, adapted, tmp_path):
    from peft import PeftModel

    from converters.export_hf import export_checkpoint

    family, hf, _ = base
    folder, wanted = adapted
    export_checkpoint(folder, tmp_path / "adapter", lora="adapter")
    model = PeftModel.from_pretrained(load(hf, family), tmp_path / "adapter").eval()
    assert_same(model, wanted, load(hf, family))

"""LoRA checkpoints, written here with large random adapters, as merged models and as adapters."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

DIM, ALPHA = 4, 8
HEADS, GROUPS, HEAD_SIZE, WIDTH = 4, 2, 16, 64
LAYERS, CROSS = 5, (1, 3)
VISION = tuple(f"vision_model.global_encoder.layers.{i}.mlp.linear_fc1.weight" for i in range(2))
EMBEDDING = "language_model.embedding.word_embeddings.weight"


@pytest.fixture(scope="module")
def hf_base(write_nano_mllama, tmp_path_factory):
    """A Hugging Face directory of the numbers above.

    The weights of its text layers are half of the fixture's: larger ones turn the rounding of the
    merged sum into 1e-4 of a logit at single positions, in transformers' own model too.
    """
    directory = tmp_path_factory.mktemp("hf") / "base"
    write_nano_mllama(directory)
    path = directory / "model.safetensors"
    tensors = load_file(path)
    for name, tensor in tensors.items():
        if name.startswith("language_model.model.layers.") and tensor.ndim == 2:
            tensor.mul_(0.5)
    save_file(tensors, path, metadata={"format": "pt"})
    return directory


@pytest.fixture(scope="module")
def base(hf_base, single_process, tmp_path_factory):
    """The same as a NeMo checkpoint."""
    from converters.import_hf import import_checkpoint

    folder = tmp_path_factory.mktemp("nemo") / "base"
    import_checkpoint("mllama", hf_base, folder)
    return folder


@pytest.fixture(scope="module")
def write_lora(base, single_process):
    """Writes a LoRA checkpoint, with random adapters and changes of other tensors.

    Returns the adapters by the name of their layer: (A, B).
    """
    from tests.adapted_model import write_adapted

    def write(folder: Path, trained=(), base=base, **options):
        return write_adapted(folder, base, trained, dim=DIM, alpha=ALPHA, **options)

    return write


@pytest.fixture(scope="module")
def plain(write_lora, tmp_path_factory):
    """(checkpoint, adapters) of a run that trained adapters only."""
    folder = tmp_path_factory.mktemp("lora") / "plain"
    return folder, write_lora(folder)


@pytest.fixture(scope="module")
def with_vision(write_lora, tmp_path_factory):
    """A checkpoint of a run that trained a layer of the vision encoder and the projection too."""
    folder = tmp_path_factory.mktemp("lora") / "with_vision"
    write_lora(folder, trained=(*VISION, "vision_projection.bias"))
    return folder


def megatron_logits(checkpoint, hf_base):
    """Logits of the model that computes with its adapters, by kind of prompt."""
    from transformers import AutoConfig, AutoProcessor

    from converters.checkpoint import open_checkpoint
    from tests.adapted_model import load_adapted

    family, _ = open_checkpoint(checkpoint)
    module = load_adapted(checkpoint).module.eval()
    processor = AutoProcessor.from_pretrained(hf_base)
    prompts = family.prompts(processor, AutoConfig.from_pretrained(hf_base))
    inputs = {
        kind: processor(text=prompt.text, images=list(prompt.images) or None, return_tensors="pt")
        for kind, prompt in prompts.items()
    }
    with torch.no_grad():
        return inputs, {
            kind: module(**family.model_inputs(processor, value)) for kind, value in inputs.items()
        }


def assert_same_logits(model, inputs, logits, differs_from=None):
    for kind, value in inputs.items():
        with torch.no_grad():
            found = model.eval()(**value).logits
        assert (found - logits[kind]).abs().max() <= 1e-4, kind
        if differs_from is not None:  # else equal logits would say nothing
            with torch.no_grad():
                without = differs_from.eval()(**value).logits
            assert (found - without).abs().max() > 0.1, kind


def load_hf(directory):
    from transformers import MllamaForConditionalGeneration

    return MllamaForConditionalGeneration.from_pretrained(directory)


def head_rows(part, heads_of_group, group_size):
    """Rows of one projection in a fused tensor, by arithmetic on heads instead of reshaping."""
    rows = []
    for group in range(GROUPS):
        for head in heads_of_group[part]:
            first = (group * group_size + head) * HEAD_SIZE
            rows += range(first, first + HEAD_SIZE)
    return rows


QKV = {"q": (0, 1), "k": (2,), "v": (3,)}
KV = {"k": (0,), "v": (1,)}


def expected_outer(layer, outer):
    """B of each Hugging Face module that a fused adapter stands for."""
    if layer.endswith("linear_qkv"):
        return {f"self_attn.{p}_proj": outer[head_rows(p, QKV, 4)] for p in QKV}
    if layer.endswith("linear_kv"):
        return {f"cross_attn.{p}_proj": outer[head_rows(p, KV, 2)] for p in KV}
    if layer.endswith("linear_fc1"):
        half = len(outer) // 2
        return {"mlp.gate_proj": outer[:half], "mlp.up_proj": outer[half:]}
    name = {
        "self_attention.linear_proj": "self_attn.o_proj",
        "cross_attention.linear_proj": "cross_attn.o_proj",
        "cross_attention.linear_q": "cross_attn.q_proj",
        "mlp.linear_fc2": "mlp.down_proj",
    }[".".join(layer.split(".")[-2:])]
    return {name: outer}


def expected_adapters(adapters):
    """(layer number, module) -> (A, B), for every Hugging Face module."""
    return {
        (int(layer.split(".")[3]), module): (inner, rows)
        for layer, (inner, outer) in adapters.items()
        for module, rows in expected_outer(layer, outer).items()
    }


def test_merged_weights_and_logits(plain, hf_base, tmp_path):
    from converters.export_hf import export_checkpoint
    from converters.verify import verify_checkpoint

    checkpoint, adapters = plain
    export_checkpoint(checkpoint, tmp_path / "merged")
    before = load_file(hf_base / "model.safetensors")
    after = load_file(tmp_path / "merged" / "model.safetensors")
    changes = {
        f"language_model.model.layers.{layer}.{module}.weight": ALPHA / DIM * outer @ inner
        for (layer, module), (inner, outer) in expected_adapters(adapters).items()
    }
    assert len(changes) == 7 * LAYERS
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        wanted = tensor + changes[name] if name in changes else tensor
        torch.testing.assert_close(after[name], wanted, rtol=0, atol=1e-6, msg=name)
    inputs, logits = megatron_logits(checkpoint, hf_base)
    assert_same_logits(load_hf(tmp_path / "merged"), inputs, logits, differs_from=load_hf(hf_base))
    report = verify_checkpoint(tmp_path / "merged", checkpoint)
    assert report.passed, report


def test_peft_loads_the_adapter_directory(plain, hf_base, tmp_path):
    from peft import PeftModel
    from transformers import AutoProcessor

    from converters.lora_directory import export_adapter

    checkpoint, adapters = plain
    figures = export_adapter(checkpoint, tmp_path / "adapter", base="some/base")
    assert figures["adapted_modules"] == 7 * LAYERS
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    expected = expected_adapters(adapters)
    assert len(tensors) == 2 * len(expected)
    for (layer, module), (inner, outer) in expected.items():
        prefix = f"base_model.model.model.language_model.layers.{layer}.{module}"
        assert torch.equal(tensors[f"{prefix}.lora_A.weight"], inner)
        assert torch.equal(tensors[f"{prefix}.lora_B.weight"], outer)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "some/base"
    assert (config["r"], config["lora_alpha"], config["modules_to_save"]) == (DIM, ALPHA, None)
    assert not (tmp_path / "adapter" / "config.json").exists()
    processor = AutoProcessor.from_pretrained(tmp_path / "adapter")
    assert processor.apply_chat_template([{"role": "user", "content": "?"}])
    model = PeftModel.from_pretrained(load_hf(hf_base), str(tmp_path / "adapter"))
    adapted = {name for name, module in model.named_modules() if hasattr(module, "lora_A")}
    assert len(adapted) == 7 * LAYERS
    assert not [name for name in adapted if "vision" in name]
    inputs, logits = megatron_logits(checkpoint, hf_base)
    assert_same_logits(model, inputs, logits, differs_from=load_hf(hf_base))
    merged = model.merge_and_unload()
    assert_same_logits(merged, inputs, logits)


def test_trained_vision_is_in_both_exports(with_vision, plain, hf_base, tmp_path):
    from peft import PeftModel

    from converters.export_hf import export_checkpoint
    from launch.__main__ import main

    export_checkpoint(with_vision, tmp_path / "merged")
    before = load_file(hf_base / "model.safetensors")
    after = load_file(tmp_path / "merged" / "model.safetensors")
    for name in (
        "vision_model.global_transformer.layers.1.mlp.fc1.weight",
        "multi_modal_projector.bias",
    ):
        torch.testing.assert_close(after[name], before[name] + 0.1)
    arguments = ["--ckpt", str(with_vision), "--out", str(tmp_path / "adapter")]
    assert main(["export", *arguments, "--lora", "adapter", "--base", str(hf_base)]) == 0
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(hf_base)
    assert config["modules_to_save"] == ["model.multi_modal_projector", "model.vision_model"]
    inputs, logits = megatron_logits(with_vision, hf_base)
    _, without_vision = megatron_logits(plain[0], hf_base)
    assert (logits["one_image"] - without_vision["one_image"]).abs().max() > 0.1
    model = PeftModel.from_pretrained(load_hf(hf_base), str(tmp_path / "adapter"))
    assert_same_logits(model, inputs, logits)
    assert_same_logits(load_hf(tmp_path / "merged"), inputs, logits)


def test_one_rounding_to_the_dtype_of_the_base(write_nano_mllama, write_lora, tmp_path):
    from converters.checkpoint import load_model, read_checkpoint
    from converters.import_hf import import_checkpoint

    write_nano_mllama(tmp_path / "hf", dtype=torch.bfloat16)
    import_checkpoint("mllama", tmp_path / "hf", tmp_path / "base")
    adapters = write_lora(tmp_path / "lora", base=tmp_path / "base")
    layer = "language_model.decoder.layers.3.cross_attention.linear_q"
    inner, outer = adapters[layer]
    assert inner.dtype == torch.bfloat16
    q_proj = "language_model.model.layers.3.cross_attn.q_proj.weight"
    weight = load_file(tmp_path / "hf" / "model.safetensors")[q_proj]
    exact = weight.double() + ALPHA / DIM * outer.double() @ inner.double()
    _, merged = read_checkpoint(tmp_path / "lora")
    assert {tensor.dtype for tensor in merged.values()} == {torch.bfloat16}
    # A sum of rounded terms would be off in a good part of the values.
    found = merged[f"{layer}.weight"]
    assert (found == exact.to(torch.bfloat16)).float().mean() > 0.999
    _, in_fp32 = load_model(tmp_path / "lora", torch.float32)
    assert torch.equal(in_fp32.get_parameter(f"{layer}.weight"), found.float())


def test_only_some_modules(write_lora, tmp_path):
    from converters.lora_directory import export_adapter

    write_lora(tmp_path / "lora", target_modules=["*.layers.3.*.linear_kv", "linear_fc2"])
    export_adapter(tmp_path / "lora", tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    text = "model.language_model.layers"
    assert config["target_modules"] == sorted(
        [f"{text}.3.cross_attn.k_proj", f"{text}.3.cross_attn.v_proj"]
        + [f"{text}.{layer}.mlp.down_proj" for layer in range(LAYERS)]
    )


def test_what_cannot_be_exported_is_refused(write_lora, plain, base, tmp_path):
    from converters.export_hf import export_checkpoint
    from converters.lora_directory import export_adapter

    with pytest.raises(ValueError, match="^lora: .* holds a whole model, no adapters; leave"):
        export_adapter(base, tmp_path / "out")
    with pytest.raises(ValueError, match="^lora: 'merged' .* whole model"):
        export_checkpoint(base, tmp_path / "out", lora="merged")
    with pytest.raises(ValueError, match="^base: 'x' is used with lora='adapter' only"):
        export_checkpoint(plain[0], tmp_path / "out", base="x")
    with pytest.raises(ValueError, match="^lora: 'half' is unknown; allowed are merged, adapter"):
        export_checkpoint(plain[0], tmp_path / "out", lora="half")
    write_lora(tmp_path / "embedding", trained=(EMBEDDING,))
    with pytest.raises(ValueError, match=f"trained {EMBEDDING}.*use the merged export"):
        export_adapter(tmp_path / "embedding", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_adapters_of_another_base_are_refused(plain, write_lora, tmp_path):
    from converters.checkpoint import read_checkpoint

    fewer = tmp_path / "fewer"
    write_lora(fewer, target_modules=["linear_fc2"])
    path = fewer / "weights" / "adapter_metadata.json"
    description = json.loads(path.read_text())
    description["lora"]["target_modules"] = ["linear_fc1"]
    path.write_text(json.dumps(description))
    with pytest.raises(ValueError, match=r"do not fit their base: .*linear_fc1.*is missing.*fc2"):
        read_checkpoint(fewer)


def test_a_moved_tree_and_a_base_that_is_gone(plain, base, tmp_path):
    from converters.checkpoint import read_checkpoint
    from models.adapter_paths import base_checkpoint, write_metadata

    shutil.copytree(base, tmp_path / "old" / "imported")
    lora = tmp_path / "old" / "runs" / "lora"
    shutil.copytree(plain[0], lora)
    from models.adapter_paths import adapter_settings

    write_metadata(lora, tmp_path / "old" / "imported" / "weights", adapter_settings(lora))
    (tmp_path / "old").rename(tmp_path / "new")
    moved = tmp_path / "new" / "runs" / "lora"
    assert base_checkpoint(moved) == tmp_path / "new" / "imported"
    shutil.rmtree(tmp_path / "new" / "imported")
    with pytest.raises(ValueError, match=r"^ckpt: .*lora holds adapters for .*imported, which is"):
        read_checkpoint(moved)

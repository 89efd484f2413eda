"""Every parameter of an imported MLlama beside those of NeMo's own importer.

NeMo names and groups its tensors in another way, so each of ours is looked up under NeMo's name.
NeMo fixes a part of the shape (a vision encoder 1280 wide with eight global layers and five tapped
ones, cross-attention in every fifth layer from the fourth on), so this is a nano model with a wide
vision encoder.
"""

import re
import subprocess
import sys
import textwrap

import pytest
import torch

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("single_process")]
SHAPE = {
    "vision_width": 1280,
    "vision_mlp_width": 5120,
    "vision_layers": 2,
    "global_layers": 8,
    "tapped_layers": (0, 0, 0, 1, 1),
    "text_layers": 10,
    "cross_layers": (3, 8),
}
STOCK = textwrap.dedent(
    """
    import sys
    from launch import backend

    backend.activate(cpu=True)
    from nemo.collections import llm, vlm

    if __name__ == "__main__":
        model = vlm.MLlamaModel(vlm.MLlamaConfig11B())
        llm.import_ckpt(model=model, source=f"hf://{sys.argv[1]}", output_path=sys.argv[2])
    """
)
RENAMED = {
    r"^vision_projection\.": "vision_model.vision_projection.encoder.",
    r"^vision_model\.(?!vision_projection)": "vision_model.vision_encoder.",
    r"\.local_encoder\.": ".transformer.",
    r"\.global_encoder\.": ".global_transformer.",
    r"(vision_encoder\..*)self_attention\.linear_qkv\.layer_norm_": r"\1input_layernorm.",
    r"(vision_encoder\..*)mlp\.linear_fc1\.layer_norm_": r"\1pre_mlp_layernorm.",
    r"\.patch_embedding\.": ".conv1._linear.",
    r"\.position_embedding$": ".positional_embedding",
    r"\.position_gate$": ".gated_positional_embedding_gate",
    r"\.tile_position_embedding\.": ".gated_tile_positional_embedding.",
    r"\.(pre|post)_tile_embedding\.": r".\1_tile_pos_embed.embedding.",
    r"\.(pre|post)_tile_gate$": r".\1_tile_pos_embed.gate",
    r"\.layernorm_(pre|post)\.": r".ln_\1.",
}


def stock_name(name: str) -> str:
    match = re.match(r"language_model\.decoder\.layers\.(\d+)\.(.*)", name)
    if match is None:
        for pattern, replacement in RENAMED.items():
            name = re.sub(pattern, replacement, name)
        return name
    layer = int(match[1])
    before = sum(cross < layer for cross in SHAPE["cross_layers"])
    kind = "xattn_layers" if layer in SHAPE["cross_layers"] else "layers"
    return f"language_model.decoder.{kind}.{layer - before}.{match[2]}"


def test_every_parameter_is_the_stock_importer_s(write_nano_mllama, project_root, tmp_path):
    from converters.import_hf import import_checkpoint
    from converters.nemo_weights import PREFIX
    from converters.torch_dist_reader import CheckpointFolder

    source = tmp_path / "source"
    model = write_nano_mllama(source, torch.bfloat16, **SHAPE)
    vocabulary = model.config.text_config.vocab_size
    (tmp_path / "stock.py").write_text(STOCK)
    result = subprocess.run(
        [sys.executable, str(tmp_path / "stock.py"), str(source), str(tmp_path / "theirs")],
        cwd=project_root.path,
        env=project_root.environment | {"PYTHONPATH": str(project_root.path)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    import_checkpoint("mllama", source, tmp_path / "ours")
    theirs = CheckpointFolder(tmp_path / "theirs" / "weights", PREFIX)
    ours = CheckpointFolder(tmp_path / "ours" / "weights", PREFIX)

    compared = set()
    for name in model_names(tmp_path / "ours"):
        own, other_name = ours.find(name).whole(), stock_name(name)
        other = theirs.find(other_name).whole()
        compared.add(other_name)
        if name.endswith("word_embeddings.weight"):
            added = "language_model.learnable_embedding.weight"
            compared.add(added)
            own = own[: vocabulary + 8]
            other = torch.cat([other[:vocabulary], theirs.find(added).whole()])
        elif name.endswith("output_layer.weight"):
            own, other = own[:vocabulary], other[:vocabulary]
        elif name.endswith("patch_embedding.weight"):
            own = own.flatten(1)
        assert torch.equal(own, other), name
    # Nothing of NeMo's was left out; its equal layers are stored as one tensor.
    stacked = {re.sub(r"\.layers\.\d+\.", ".layers.", name) for name in compared}
    assert set(theirs.stored) <= stacked | compared


def model_names(checkpoint):
    """Names of the model's tensors, which the assets say."""
    from converters.finished import open_checkpoint

    family, assets = open_checkpoint(checkpoint)
    return [row.megatron_key for row in family.table(assets)]

"""The table against transformers' own model and against ours, at the published sizes."""

import pytest
import torch
from transformers import MllamaConfig, MllamaForConditionalGeneration

pytestmark = pytest.mark.usefixtures("single_process")

ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
VISION = {
    "hidden_size": 1280,
    "num_attention_heads": 16,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_global_layers": 8,
    "image_size": 560,
    "patch_size": 14,
    "max_num_tiles": 4,
    "intermediate_layers_indices": [3, 7, 15, 23, 30],
    "vision_output_dim": 7680,
}
SIZES = {
    "11b": {
        "vocab_size": 128256,
        "hidden_size": 4096,
        "num_hidden_layers": 40,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "cross_attention_layers": list(range(3, 40, 5)),
    },
    "90b": {
        "vocab_size": 128256,
        "hidden_size": 8192,
        "num_hidden_layers": 100,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "intermediate_size": 28672,
        "cross_attention_layers": list(range(3, 100, 5)),
    },
}
PARAMETERS = {"11b": 10.7, "90b": 88.6}
"""Billions, as the pages of the published models say."""


@pytest.fixture(scope="module")
def published(nemo):
    """A published size as (configuration, tensors on the meta device under their disk names)."""
    from converters.mllama import STYLES

    made = {}

    def build(size):
        if size not in made:
            config = MllamaConfig(VISION, SIZES[size] | {"rope_scaling": ROPE})
            with torch.device("meta"):
                model = MllamaForConditionalGeneration(config)
            made[size] = (config, STYLES.disk_names(model.state_dict()))
        return made[size]

    return build


@pytest.mark.parametrize("size", SIZES)
def test_the_table_has_the_keys_and_shapes_of_both_models(published, size):
    from converters.mapping import to_hf, to_megatron
    from converters.mllama import mllama_table
    from converters.structure import structure_of
    from models.mllama.config import config_from_hf

    description, theirs = published(size)
    parameters = sum(tensor.numel() for tensor in theirs.values())
    assert round(parameters / 1e9, 1) == PARAMETERS[size]
    ours = structure_of(config_from_hf(description), torch.bfloat16).shapes()
    table = mllama_table(description)
    assert shapes(to_megatron(table, lazy(theirs))) == ours
    empty = {name: torch.empty(shape, device="meta") for name, shape in ours.items()}
    assert shapes(to_hf(table, lazy(empty))) == shapes(theirs)


def lazy(tensors):
    from converters.lazy import HeldTensor

    return {name: HeldTensor(tensor) for name, tensor in tensors.items()}


def shapes(tensors):
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def test_no_tensor_is_in_two_rows(published):
    from converters.mllama import mllama_table

    table = mllama_table(published("11b")[0])
    for keys in (
        [key for row in table for key in row.hf_keys],
        [row.megatron_key for row in table],
    ):
        assert len(keys) == len(set(keys))


def test_the_norms_of_query_and_key_keep_their_sides(published):
    """Exchanged, they would give the same bits and logits: their product is all that counts."""
    from converters.mllama import mllama_table

    rows = {row.hf_keys[0]: row for row in mllama_table(published("11b")[0])}
    for side in ("q", "k"):
        row = rows[f"language_model.model.layers.38.cross_attn.{side}_norm.weight"]
        place = "language_model.decoder.layers.38.cross_attention."
        assert row.megatron_key == f"{place}{side}_layernorm.weight"


def test_key_and_value_of_a_group_stand_together():
    from converters.mapping import fuse_tensors, split_tensors
    from converters.rows import FuseKeyValue

    row = FuseKeyValue(key="k", value="v", megatron="m", num_groups=2, head_size=3)
    key, value = torch.randn(6, 5), torch.randn(6, 5)
    fused = fuse_tensors([row], {"k": key, "v": value})
    assert torch.equal(fused["m"], torch.cat([key[:3], value[:3], key[3:], value[3:]]))
    back = split_tensors([row], fused)
    assert torch.equal(back["k"], key)
    assert torch.equal(back["v"], value)


def test_the_padding_of_both_vocabulary_tables_is_cut_again(published):
    """128,264 rows of the embedding and 128,256 of the output layer, both in 128,384."""
    from converters.mapping import fuse_tensors, split_tensors
    from converters.mllama import mllama_table

    table = mllama_table(published("11b")[0])
    rows = {row.megatron_key: row for row in table}
    for name, real in (("embedding.word_embeddings", 128264), ("output_layer", 128256)):
        row = rows[f"language_model.{name}.weight"]
        weight = torch.arange(real, dtype=torch.float32).unsqueeze(1)
        padded = fuse_tensors([row], {row.hf_keys[0]: weight})
        (found,) = padded.values()
        assert found.shape[0] == 128384
        assert found[real:].abs().sum() == 0
        (back,) = split_tensors([row], padded).values()
        assert torch.equal(back, weight)


def test_the_names_on_disk_are_those_that_transformers_writes(write_nano_mllama, tmp_path, nemo):
    from safetensors.torch import load_file

    from converters.mllama import STYLES

    model = write_nano_mllama(tmp_path / "hf")
    on_disk = load_file(tmp_path / "hf" / "model.safetensors")
    assert any(name.startswith("language_model.model.layers.") for name in on_disk)
    assert STYLES.disk_names(on_disk).keys() == on_disk.keys()
    in_memory = model.state_dict()
    assert not in_memory.keys() & on_disk.keys()
    renamed = STYLES.disk_names(in_memory)
    assert renamed.keys() == on_disk.keys()
    for name, tensor in renamed.items():
        assert torch.equal(tensor, on_disk[name]), name


def test_a_mixture_of_both_styles_is_refused():
    from converters.mllama import STYLES
    from converters.rows import ConversionError

    tensors = {"lm_head.weight": torch.zeros(1), "vision_model.class_embedding": torch.zeros(1)}
    with pytest.raises(
        ConversionError,
        match=r"mix two styles of names: lm_head.weight beside vision_model.class_embedding\.",
    ):
        STYLES.disk_names(tensors)

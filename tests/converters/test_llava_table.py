"""The table against transformers' own model and against ours, at the published sizes."""

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

pytestmark = pytest.mark.usefixtures("single_process")

VISION = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
SIZES = {
    "7b": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
    },
    "13b": {
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
        "num_key_value_heads": 40,
    },
    # Not published: fewer key heads, a tied output layer, no bias, the last layer's features.
    "other": {
        "hidden_size": 128,
        "intermediate_size": 352,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
}
OPTIONS = {"other": {"multimodal_projector_bias": False, "vision_feature_layer": -1}}
PARAMETERS = {"7b": 7.06, "13b": 13.35}
"""Billions, as the pages of the published models say."""


@pytest.fixture(scope="module")
def published(nemo):
    """A size as (configuration, tensors on the meta device under their disk names)."""
    from converters.llava import STYLES, llava_drops

    def build(size):
        text = LlamaConfig(vocab_size=32064, **SIZES[size])
        config = LlavaConfig(CLIPVisionConfig(**VISION), text, **OPTIONS.get(size, {}))
        config.tie_word_embeddings = text.tie_word_embeddings
        with torch.device("meta"):
            model = LlavaForConditionalGeneration(config)
        tensors = STYLES.disk_names(model.state_dict())
        for drop in llava_drops(text):
            tensors.pop(drop.hf, None)
        return config, tensors

    return build


@pytest.mark.parametrize("size", SIZES)
def test_the_table_has_the_keys_and_shapes_of_both_models(published, size):
    from converters.lazy import HeldTensor
    from converters.llava import llava_table
    from converters.mapping import to_hf, to_megatron
    from converters.structure import structure_of
    from models.llava.config import config_from_hf

    def lazy(tensors):
        return {name: HeldTensor(tensor) for name, tensor in tensors.items()}

    def shapes(tensors):
        return {name: tuple(tensor.shape) for name, tensor in tensors.items()}

    description, theirs = published(size)
    if size in PARAMETERS:
        parameters = sum(tensor.numel() for tensor in theirs.values())
        assert round(parameters / 1e9, 2) == PARAMETERS[size]
    ours = structure_of(config_from_hf(description), torch.bfloat16).shapes()
    table = llava_table(description)
    assert shapes(to_megatron(table, lazy(theirs))) == ours
    empty = {name: torch.empty(shape, device="meta") for name, shape in ours.items()}
    assert shapes(to_hf(table, lazy(empty))) == shapes(theirs)
    for keys in (
        [key for row in table for key in row.hf_keys],
        [row.megatron_key for row in table],
    ):
        assert len(keys) == len(set(keys))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"text_config": {"model_type": "gemma"}},
            "text_config: 'gemma' is not supported in a LLaVA; llama, mistral, qwen2, gpt2, nem",
        ),
        (
            {"text_config": {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}},
            "rope_scaling: .* is not supported",
        ),
        ({"text_config": {"attention_bias": True}}, "attention_bias: True .* is not supported"),
        (
            {"text_config": {"model_type": "gpt2", "activation_function": "relu"}},
            "activation_function: 'relu' of the language model",
        ),
        (
            {"text_config": {"model_type": "nemotron", "hidden_act": "gelu"}},
            "hidden_act: 'gelu' of the language model is not supported; a plain Nemotron",
        ),
        (
            {"vision_config": {"model_type": "internvl_vision", "use_qk_norm": True}},
            "attention_bias: False of the vision tower is not supported; an InternViT-300M",
        ),
        (
            {"text_config": {"model_type": "gpt2", "scale_attn_by_inverse_layer_idx": True}},
            "scale_attn_by_inverse_layer_idx: True of the language model",
        ),
        (
            {"vision_config": {"model_type": "vit", "hidden_act": "gelu"}},
            "vision_config: 'vit' is not supported in a LLaVA",
        ),
        (
            {"text_config": {"model_type": "mistral", "sliding_window": 4096}},
            "sliding_window: 4096 of the language model",
        ),
        ({"vision_config": {"hidden_act": "gelu"}}, "hidden_act: 'gelu' is not supported"),
        ({"vision_feature_layer": [-2, -5]}, "vision_feature_layer: .* one negative number"),
        ({"projector_hidden_act": "relu"}, "projector_hidden_act: 'relu' is not supported"),
    ],
)
def test_what_this_model_is_not_is_refused(nemo, change, message):
    from models.llava.config import config_from_hf

    content = {"vision_config": dict(VISION), "text_config": dict(SIZES["other"])}
    for name, value in change.items():
        content[name] = content[name] | value if isinstance(value, dict) else value
    with pytest.raises(ValueError, match=message):
        config_from_hf(LlavaConfig(**content))

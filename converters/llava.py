"""The table between LLaVA's Hugging Face tensors and Megatron-Core's."""

from __future__ import annotations

from transformers import CLIPVisionConfig, LlavaConfig, PretrainedConfig

from converters.name_styles import NameStyles
from converters.nvila import vision_table
from converters.parts import language_table, vision_layers
from converters.rows import Dropped, Rename, Row
from models.llava.description import QKV_BIAS

STYLES = NameStyles(
    {
        "model.language_model.": "language_model.model.",
        "model.vision_tower.": "vision_tower.",
        "model.multi_modal_projector.": "multi_modal_projector.",
        "lm_head.": "language_model.lm_head.",
    }
)
_VISION = "vision_tower.vision_model."
_EMBEDDING, _OUTPUT = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"


def llava_table(description: LlavaConfig) -> list[Row]:
    """Rows for a whole model.

    Args:
        description: sizes.
    """
    text = description.text_config
    is_clip = description.vision_config.model_type == "clip_vision_model"
    tower = clip_table if is_clip else vision_table
    kinds = ("weight", "bias") if description.multimodal_projector_bias else ("weight",)
    return [
        *language_table(text, "language_model.", qkv_bias=QKV_BIAS[text.model_type]),
        *tower(description.vision_config, -description.vision_feature_layer - 1),
        *(
            Rename(
                hf=f"multi_modal_projector.{layer}.{kind}",
                megatron=f"vision_projection.{layer}.{kind}",
            )
            for layer in ("linear_1", "linear_2")
            for kind in kinds
        ),
    ]


def llava_drops(text: PretrainedConfig) -> list[Dropped]:
    """Rows of what older files hold beyond the model: constants, and a tied output layer again.

    Args:
        text: of the language model.
    """
    drops = [Dropped(hf=f"{_VISION}embeddings.position_ids")]
    drops += [
        Dropped(hf=f"language_model.model.layers.{layer}.self_attn.rotary_emb.inv_freq")
        for layer in range(text.num_hidden_layers)
    ]
    if text.tie_word_embeddings:
        drops.append(Dropped(hf=_OUTPUT, copy_of=_EMBEDDING))
    return drops


def clip_table(
    vision: CLIPVisionConfig,
    num_carried_layers: int,
    hf: str = _VISION,
    megatron: str = "vision_model.",
) -> list[Row]:
    """Rows of a CLIP vision tower below the given prefixes."""
    rows: list[Row] = [
        Rename(hf=f"{hf}embeddings.class_embedding", megatron=f"{megatron}class_token"),
        Rename(hf=f"{hf}embeddings.patch_embedding.weight", megatron=f"{megatron}conv1.weight"),
        Rename(
            hf=f"{hf}embeddings.position_embedding.weight",
            megatron=f"{megatron}position_embeddings.weight",
        ),
    ]
    rows += [
        # transformers spells it so.
        Rename(hf=f"{hf}pre_layrnorm.{kind}", megatron=f"{megatron}ln_pre.{kind}")
        for kind in ("weight", "bias")
    ]
    return rows + vision_layers(vision, num_carried_layers, hf, megatron)

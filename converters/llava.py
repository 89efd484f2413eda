"""The table between LLaVA's Hugging Face tensors and Megatron-Core's."""

from __future__ import annotations

import torch
from transformers import CLIPVisionConfig, LlavaConfig, PretrainedConfig

from converters.gpt2 import gpt2_drops, gpt2_table
from converters.internvit import internvit_table
from converters.name_styles import NameStyles
from converters.nemotron import nemotron_table
from converters.nvila import vision_table
from converters.parts import language_table, renames, vision_layers
from converters.rows import Dropped, Rename, Row
from models.hf_code.modeling_neva_llava import make_projector
from models.image_slots.layer_names import CLIP
from models.llava.description import QKV_BIAS, feature_width, projector_type

STYLES = NameStyles(
    {
        "model.language_model.": "language_model.model.",
        "model.vision_tower.": "vision_tower.",
        "model.multi_modal_projector.": "multi_modal_projector.",
        "lm_head.": "language_model.lm_head.",
    }
)
_VISION = "vision_tower.vision_model."
_LANGUAGE, _OUTPUT = "language_model.model.", "language_model.lm_head.weight"

WHOLE_CLIP = [
    Dropped(hf="vision_tower.text_model."),
    Dropped(hf="vision_tower.text_projection.weight"),
    Dropped(hf="vision_tower.visual_projection.weight"),
    Dropped(hf="vision_tower.logit_scale"),
    Dropped(hf=f"{_VISION}embeddings.position_ids"),
]
"""What the published CLIP models have beyond the tower."""


def llava_table(description: LlavaConfig) -> list[Row]:
    """Rows for a whole model.

    Args:
        description: sizes.
    """
    return [
        *_language_rows(description.text_config),
        *_vision_rows(description.vision_config, -description.vision_feature_layer - 1),
        *(
            Rename(hf=f"multi_modal_projector.{name}", megatron=f"vision_projection.{name}")
            for name in _projector_names(description)
        ),
    ]


def _projector_names(description: LlavaConfig) -> list[str]:
    with torch.device("meta"):
        projector = make_projector(
            projector_type(description),
            feature_width(description),
            description.text_config.hidden_size,
            description.multimodal_projector_bias,
        )
    return list(projector.state_dict())


def _language_rows(text: PretrainedConfig) -> list[Row]:
    if text.model_type == "gpt2":
        return gpt2_table(text, _LANGUAGE, _OUTPUT)
    if text.model_type == "nemotron":
        return nemotron_table(text, "language_model.")
    return language_table(text, "language_model.", qkv_bias=QKV_BIAS[text.model_type])


def _vision_rows(vision: PretrainedConfig, num_carried_layers: int) -> list[Row]:
    if vision.model_type == "clip_vision_model":
        return clip_table(vision, num_carried_layers)
    if vision.model_type == "internvl_vision":
        return internvit_table(vision, num_carried_layers)
    head = getattr(vision, "vision_use_head", True)
    return vision_table(vision, num_carried_layers, head=head)


def llava_drops(text: PretrainedConfig) -> list[Dropped]:
    """Rows of what older files hold beyond the model: constants, and a tied output layer again.

    Args:
        text: of the language model.
    """
    drops = [Dropped(hf=f"{_VISION}embeddings.position_ids")]
    if text.model_type == "gpt2":
        drops += gpt2_drops(text, _LANGUAGE)
        embedding = f"{_LANGUAGE}wte.weight"
    else:
        drops += [
            Dropped(hf=f"{_LANGUAGE}layers.{layer}.self_attn.rotary_emb.inv_freq")
            for layer in range(text.num_hidden_layers)
        ]
        embedding = f"{_LANGUAGE}embed_tokens.weight"
    if text.tie_word_embeddings:
        drops.append(Dropped(hf=_OUTPUT, copy_of=embedding))
    return drops


def clip_table(
    vision: CLIPVisionConfig,
    num_carried_layers: int,
    hf: str = _VISION,
    megatron: str = "vision_model.",
) -> list[Row]:
    """Rows of a CLIP vision tower below the given prefixes."""
    layers = vision_layers(vision, num_carried_layers, hf, megatron)
    return [*renames(CLIP, hf, megatron), *layers]

"""The table between NVILA's Hugging Face tensors (flat `nvila_lite` names) and Megatron-Core's."""

from __future__ import annotations

import torch
from transformers import Qwen2Config, SiglipVisionConfig

from converters.parts import language_table, vision_layers
from converters.rows import Dropped, Rename, Row
from models.hf_code.configuration_nvila_lite import DOWNSAMPLE, NVILALiteConfig
from models.hf_code.projector_nvila_lite import NVILALiteProjector

EMBEDDING, OUTPUT = "llm.model.embed_tokens.weight", "llm.lm_head.weight"
TIED_OUTPUT = [Dropped(hf=OUTPUT, copy_of=EMBEDDING)]
"""Some files hold the tied output layer again."""

WHOLE_SIGLIP = [
    Dropped(hf="vision_tower.vision_model.head."),  # pools the patches to one vector
    Dropped(hf="vision_tower.text_model."),
    Dropped(hf="vision_tower.logit_scale"),
    Dropped(hf="vision_tower.logit_bias"),
]
"""What the published SigLIP models have beyond the tower that NVILA takes."""


def nvila_table(description: NVILALiteConfig) -> list[Row]:
    """Rows for a whole model.

    Args:
        description: sizes.
    """
    text, vision = description.text_config, description.vision_config
    downsample = DOWNSAMPLE[description.mm_projector_type]
    with torch.device("meta"):
        projector = NVILALiteProjector(vision.hidden_size, text.hidden_size, downsample)
    return [
        *language_table(text, "llm.", qkv_bias=True),
        *vision_table(vision, -description.vision_feature_layer - 1),
        *(
            Rename(hf=f"mm_projector.{name}", megatron=f"vision_projection.{name}")
            for name in projector.state_dict()
        ),
    ]


def nvila_drops(text: Qwen2Config) -> list[Dropped]:
    """Rows of what a directory may hold beyond the model.

    Args:
        text: of the language model.
    """
    return TIED_OUTPUT if text.tie_word_embeddings else []


def vision_table(
    vision: SiglipVisionConfig,
    num_carried_layers: int,
    hf: str = "vision_tower.vision_model.",
    megatron: str = "vision_model.",
    head: bool = False,
) -> list[Row]:
    """Rows of a SigLIP vision tower below the given prefixes, and of its pooling head if wanted."""
    rows: list[Row] = [
        Rename(hf=f"{hf}embeddings.patch_embedding.{kind}", megatron=f"{megatron}conv1.{kind}")
        for kind in ("weight", "bias")
    ]
    rows.append(
        Rename(
            hf=f"{hf}embeddings.position_embedding.weight",
            megatron=f"{megatron}position_embeddings.weight",
        )
    )
    return rows + vision_layers(vision, num_carried_layers, hf, megatron, head)

"""A LLaVA's configuration from rows: language model, vision tower, projector."""

from __future__ import annotations

import nemo_run as run

from models.llava.config import LlavaConfig
from models.llava.description import LLAVA_PROJECTOR
from models.llava.model import LlavaModel
from recipes import parts
from recipes.llava.sizes import LanguageRow
from recipes.llava.towers import VisionRow
from recipes.rows import LayoutRow, StageRow


def model(
    language: LanguageRow,
    tower: VisionRow,
    stage: StageRow,
    layout: LayoutRow,
    assets: str,
    projector: str = LLAVA_PROJECTOR,
) -> run.Config:
    """Build the model of some parts, frozen as the stage says."""
    recompute = parts.recompute_options(layout)
    language_config = run.Config(
        language.config,
        hidden_size=language.hidden_size,
        num_layers=language.num_layers,
        num_attention_heads=language.num_attention_heads,
        num_query_groups=language.num_query_groups,
        kv_channels=language.head_size,
        ffn_hidden_size=language.ffn_hidden_size,
        seq_length=stage.seq_length,
        cross_entropy_loss_fusion=layout.precision != "fp32",
        **language.options,
        **recompute,
    )
    vision_config = run.Config(
        tower.config,
        hidden_size=tower.hidden_size,
        num_layers=tower.num_layers,
        num_carried_layers=tower.num_carried_layers,
        num_attention_heads=tower.num_attention_heads,
        ffn_hidden_size=tower.ffn_hidden_size,
        image_size=tower.image_size,
        image_scales=tower.image_scales,
        **recompute,
    )
    return run.Config(
        LlavaModel,
        config=run.Config(
            LlavaConfig,
            language_transformer_config=language_config,
            vision_transformer_config=vision_config,
            mm_projector_type=projector,
            assets=assets,
            freeze_language_model=not stage.train_language,
            freeze_vision_model=not stage.train_vision,
            freeze_vision_projection=not stage.train_projector,
        ),
    )

"""How many positions an image has, and how transformers' processor counts them."""

import pytest
from transformers import LlavaConfig

from models.hf_code.configuration_neva_llava import NevaLlavaConfig
from models.llava.description import processor_patch_size, slots_per_image

TOWERS = {
    "clip": ("clip_vision_model", 336, "default"),
    "siglip": ("siglip_vision_model", 384, "full"),
    "internvit": ("internvl_vision", 448, "default"),
}


def described(tower, projector):
    model_type, size, strategy = TOWERS[tower]
    vision = {"model_type": model_type, "image_size": size, "patch_size": 14}
    settings = {"vision_config": vision, "vision_feature_select_strategy": strategy}
    if projector is None:
        return LlavaConfig(**settings)
    return NevaLlavaConfig(mm_projector_type=projector, **settings)


# By hand: 24, 27 and 32 patches to a side, by two and by three, rounded up.
@pytest.mark.parametrize(
    ("tower", "projector", "slots"),
    [
        ("clip", None, 576),
        ("clip", "affine", 576),
        ("clip", "mlp_downsample_2x2_fix", 144),
        ("clip", "mlp_downsample_3x3_fix", 64),
        ("siglip", None, 729),
        ("siglip", "mlp_downsample_2x2_fix", 196),
        ("siglip", "mlp_downsample_3x3_fix", 81),
        ("internvit", None, 1024),
        ("internvit", "mlp_downsample_2x2_fix", 256),
        ("internvit", "mlp_downsample_3x3_fix", 121),
    ],
)
def test_positions_of_the_published_towers(tower, projector, slots):
    config = described(tower, projector)
    assert slots_per_image(config) == slots
    side = TOWERS[tower][1]
    # The arithmetic of LlavaProcessor.
    assert (side // processor_patch_size(config)) ** 2 == slots


def test_features_that_are_no_grid_have_no_two_scales():
    config = described("clip", "mlp2x_gelu")
    config.image_scales = (1.0, 0.5)
    assert slots_per_image(config) == 576
    config.vision_feature_select_strategy = "full"
    with pytest.raises(ValueError, match=r"^vision_feature_select_strategy: 'full' leaves 577"):
        slots_per_image(config)


def test_a_grid_with_a_hole_cannot_be_merged():
    config = described("siglip", "mlp_downsample_2x2_fix")
    config.vision_feature_select_strategy = "default"
    with pytest.raises(ValueError, match="leaves 728 of 729 patches, which mlp_downsample_2x2"):
        slots_per_image(config)


def test_what_the_processor_cannot_count_is_refused():
    # 5 patches become 3, and 23 goes three times into 70; nothing goes six times into 11 alone.
    config = described("clip", "mlp_downsample_2x2_fix")
    config.vision_config.image_size, config.vision_config.patch_size = 70, 14
    assert slots_per_image(config) == 9
    assert processor_patch_size(config) == 23
    config.vision_config.image_size, config.vision_config.patch_size = 11, 1
    assert slots_per_image(config) == 36
    with pytest.raises(ValueError, match="makes 36 vectors .* cannot count"):
        processor_patch_size(config)


def test_an_unknown_projector_is_refused():
    with pytest.raises(ValueError, match="mm_projector_type='resampler' is unknown: .* affine"):
        NevaLlavaConfig(mm_projector_type="resampler")


@pytest.mark.usefixtures("nemo")
def test_what_the_assets_decide_of_a_tower_is_adopted():
    """A recipe's row knows neither the published LLaVA-JP's lost patch nor a carried head."""
    from models.llava.config import LlavaConfig, LlavaLanguageConfig
    from models.nvila.config import SiglipTowerConfig

    sizes = {"num_layers": 1, "hidden_size": 32, "num_attention_heads": 2, "ffn_hidden_size": 48}
    ours, theirs = (
        LlavaConfig(
            language_transformer_config=LlavaLanguageConfig(**sizes),
            vision_transformer_config=SiglipTowerConfig(**sizes, **flags),
        )
        for flags in ({}, {"drops_first_patch": True, "carries_head": True})
    )
    ours.adopt(theirs)
    assert ours.vision_transformer_config.drops_first_patch
    assert ours.vision_transformer_config.carries_head

"""Fields of recipes from the command line, whatever their module does with annotations."""

import pytest

pytestmark = pytest.mark.usefixtures("nemo")

OVERRIDES = {
    "data.conversation_template=v1": ("data.conversation_template", "v1"),
    "data.max_tiles=None": ("data.max_tiles", None),
    "optim.vision_lr=1e-5": ("optim.vision_lr", 1e-5),
    "optim.projector_lr=None": ("optim.projector_lr", None),
    "optim.config.lr=1e-3": ("optim.config.lr", 1e-3),
    "model.config.freeze_vision_model=False": ("model.config.freeze_vision_model", False),
    "model.config.language_transformer_config.num_layers=3": (
        "model.config.language_transformer_config.num_layers",
        3,
    ),
    "model.config.vision_transformer_config.keep_class_token=True": (
        "model.config.vision_transformer_config.keep_class_token",
        True,
    ),
    "peft.dim=16": ("peft.dim", 16),
    "peft.freeze_vision_projection=True": ("peft.freeze_vision_projection", True),
    "peft.target_modules=['linear_qkv', 'linear_fc1']": (
        "peft.target_modules",
        ["linear_qkv", "linear_fc1"],
    ),
}


@pytest.mark.parametrize("override", OVERRIDES)
@pytest.mark.parametrize("scheme", ["lora", "dora"])
def test_fields_of_every_part_can_be_overridden(override, scheme):
    from launch.factory import build_recipe

    path, wanted = OVERRIDES[override]
    value = build_recipe(f"llava(size='nano', peft_scheme='{scheme}')", [override])
    for name in path.split("."):
        value = getattr(value, name)
    assert value == wanted
    assert type(value) is type(wanted)


def test_a_wrong_value_is_refused():
    from launch.factory import build_recipe

    with pytest.raises(ValueError, match="freeze_vision_model=maybe: cannot be applied"):
        build_recipe("llava(size='nano')", ["model.config.freeze_vision_model=maybe"])

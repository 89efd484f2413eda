"""The rows of LLaVA and LLaVA-JP, and LoRA of all families, against the published numbers."""

import fiddle as fdl
import pytest

pytestmark = pytest.mark.usefixtures("nemo")

# Learning rate, projector's own, global batch, steps, (vision, projector, language) trained,
# template. From scripts/v1_5 of LLaVA and scripts/ of LLaVA-JP.
PUBLISHED = {
    ("llava", "pretrain", "none"): (1e-3, None, 256, 2180, (False, True, False), "plain"),
    ("llava", "sft", "none"): (2e-5, None, 128, 5197, (False, True, True), None),
    ("llava", "sft", "lora"): (2e-4, 2e-5, 128, 5197, (False, True, True), None),
    ("llava_jp", "pretrain", "none"): (1e-3, None, 32, 17_441, (False, True, False), "plain"),
    ("llava_jp", "sft", "none"): (2e-5, None, 16, 38_750, (False, True, True), None),
    ("llava_jp", "sft", "lora"): (2e-4, 2e-5, 16, 38_750, (False, True, True), None),
}
SIZES = {"llava": ("7b", "13b"), "llava_jp": ("1b",)}


def compose(family, **options):
    from importlib import import_module

    return import_module(f"recipes.{family}").finetune_recipe(**options)


@pytest.mark.parametrize(("family", "stage", "scheme"), PUBLISHED)
def test_published_hyperparameters(family, stage, scheme):
    lr, projector_lr, batch, steps, trained, template = PUBLISHED[family, stage, scheme]
    for size in SIZES[family]:
        recipe = compose(family, stage=stage, size=size, peft_scheme=scheme)
        assert (recipe.optim.config.lr, recipe.optim.projector_lr) == (lr, projector_lr)
        assert recipe.optim.vision_lr is None
        assert recipe.optim.lr_scheduler.min_lr == 0
        assert recipe.optim.lr_scheduler.warmup_steps == round(0.03 * steps)
        assert recipe.optim.config.weight_decay == 0
        assert (recipe.optim.config.adam_beta1, recipe.optim.config.adam_beta2) == (0.9, 0.999)
        assert recipe.data.global_batch_size == batch
        assert recipe.trainer.max_steps == steps
        assert recipe.data.conversation_template == template
        config = recipe.model.config
        frozen = (
            config.freeze_vision_model,
            config.freeze_vision_projection,
            config.freeze_language_model,
        )
        assert tuple(not part for part in frozen) == trained
        if scheme == "lora":
            assert (recipe.peft.dim, recipe.peft.alpha, recipe.peft.dropout) == (128, 256, 0.05)
            assert recipe.peft.freeze_vision_model is True
            assert recipe.peft.freeze_vision_projection is False
            assert recipe.trainer.strategy.ckpt_async_save is False
    start = {"pretrain": "runs/assembled", "sft": "runs/pretrain"}[stage]
    assert recipe.resume.init_from == recipe.data.assets == config.assets == start


@pytest.mark.parametrize("precision", [None, "bf16", "fp8"])
@pytest.mark.parametrize(("family", "stage", "scheme"), PUBLISHED)
def test_rows_build_and_survive_serialisation(family, stage, scheme, precision):
    from nemo_run.core.serialization.zlib_json import ZlibJSONSerializer

    for size in ("nano", *SIZES[family]):
        recipe = compose(
            family, stage=stage, size=size, peft_scheme=scheme, precision=precision, data="shards"
        )
        serializer = ZlibJSONSerializer()
        assert serializer.deserialize(serializer.serialize(recipe)) == recipe
        strategy = recipe.trainer.strategy
        parts = strategy.tensor_model_parallel_size if strategy.sequence_parallel else 1
        multiple = recipe.data.pad_to_multiple_of
        assert (multiple // parts) % (16 if precision == "fp8" else 8) == 0
        assert recipe.data.seq_length % multiple == 0


@pytest.mark.parametrize("family", ["llava", "llava_jp"])
def test_lora_is_not_for_the_first_stage(family):
    with pytest.raises(ValueError, match="peft_scheme: 'lora' is unknown; allowed are none"):
        compose(family, stage="pretrain", peft_scheme="lora")
    with pytest.raises(ValueError, match="stage: 'align' is unknown; allowed are pretrain, sft"):
        compose(family, stage="align")


def test_lora_of_llava_jp_is_on_the_fused_projection_only():
    recipe = compose("llava_jp", size="1b", peft_scheme="lora")
    assert recipe.peft.target_modules == ["*.language_model.*.linear_qkv"]


def test_the_vision_of_llava_jp():
    from models.llava.config import ClipTowerConfig, HFClipTowerConfig
    from models.nvila.config import SiglipTowerConfig

    shapes = {}
    for vision in ("clip", "clip_hf", "siglip", "siglip_s2"):
        row = compose("llava_jp", size="1b", vision=vision).model.config.vision_transformer_config
        tower = fdl.build(row)
        shapes[vision] = (type(tower), tower.input_size, tower.feature_size)
    assert shapes == {
        "clip": (ClipTowerConfig, 336, 1024),
        "clip_hf": (HFClipTowerConfig, 336, 1024),
        "siglip": (SiglipTowerConfig, 384, 1152),
        "siglip_s2": (SiglipTowerConfig, 768, 2304),
    }


def test_sizes_are_those_of_the_published_models():
    """Counted by hand from the rows: llm-jp-1.3b has 1.316 billion parameters, Vicuna 6.74, 13."""
    from recipes.llava.sizes import SIZES as LLAVA
    from recipes.llava_jp.sizes import SIZES as LLAVA_JP

    row = LLAVA_JP["1b"]
    width, inner = row.hidden_size, row.ffn_hidden_size
    block = (3 * width + 1 * width) * (width + 1) + inner * (width + 1) + width * (inner + 1)
    block += 4 * width
    total = row.num_layers * block + (50_688 + row.options["max_positions"] + 2) * width
    assert total == pytest.approx(1.316e9, rel=1e-3)
    for size, count in (("7b", 6.738e9), ("13b", 13.016e9)):
        row = LLAVA[size]
        width = row.hidden_size
        layer = 4 * width * width + 3 * width * row.ffn_hidden_size + 2 * width
        assert row.num_layers * layer + (2 * 32_000 + 1) * width == pytest.approx(count, rel=1e-3)


def test_lora_of_nvila_keeps_the_rates_of_what_trains_in_full():
    from recipes.nvila import finetune_recipe

    recipe = finetune_recipe(stage="sft", size="15b", num_nodes=12, peft_scheme="lora")
    assert recipe.optim.config.lr == 1e-4
    assert (recipe.optim.vision_lr, recipe.optim.projector_lr) == (2e-5, 2e-5)
    assert (recipe.peft.dim, recipe.peft.alpha) == (8, 32)
    assert recipe.peft.freeze_vision_model is False
    recipe = finetune_recipe(stage="pretrain", size="1b", peft_scheme="lora")
    assert (recipe.optim.vision_lr, recipe.optim.projector_lr) == (None, 5e-5)
    assert recipe.peft.freeze_vision_model is True
    with pytest.raises(ValueError, match="peft_scheme: 'lora' is unknown; allowed are none"):
        finetune_recipe(stage="align", peft_scheme="lora")

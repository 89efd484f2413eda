"""Every row builds offline, survives serialisation, and holds the published numbers."""

import socket

import pytest

pytestmark = pytest.mark.usefixtures("nemo")

STAGES = ("align", "pretrain", "sft")
SIZES = ("nano", "1b", "2b", "15b", "33b")


@pytest.fixture
def offline(monkeypatch):
    """No sockets."""

    def refuse(*arguments, **keywords):
        raise AssertionError("a recipe asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize("precision", [None, "fp32", "bf16", "fp8"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("stage", STAGES)
def test_every_row_builds_offline_and_survives_serialisation(
    offline, tmp_path, monkeypatch, stage, size, precision
):
    from nemo_run.core.serialization.zlib_json import ZlibJSONSerializer

    from recipes.nvila.recipe import finetune_recipe

    monkeypatch.chdir(tmp_path)
    recipe = finetune_recipe(stage=stage, size=size, precision=precision)
    serializer = ZlibJSONSerializer()
    assert serializer.deserialize(serializer.serialize(recipe)) == recipe
    assert list(tmp_path.iterdir()) == []


# From the scripts of Heron-NVILA-Lite-15B: learning rate, global batch, checkpoint interval and
# number kept, what is trained (vision, projector, language), steps of one epoch.
PUBLISHED = {
    "align": (1e-3, 2048, 500, 1, (False, True, False), 562),
    "pretrain": (5e-5, 1152, 500, 10, (False, True, True), 28_645),
    "sft": (2e-5, 2304, 100, 1, (True, True, True), 468),
}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("size", ["1b", "2b", "15b", "33b"])
def test_published_hyperparameters(stage, size):
    from recipes.nvila.recipe import finetune_recipe

    lr, batch, interval, kept, trained, steps = PUBLISHED[stage]
    recipe = finetune_recipe(stage=stage, size=size, num_nodes=12 if stage != "align" else 2)
    assert recipe.optim.config.lr == lr
    assert recipe.optim.lr_scheduler.min_lr == 0
    assert recipe.optim.lr_scheduler.warmup_steps == round(0.03 * steps)
    assert recipe.optim.config.weight_decay == 0
    assert (recipe.optim.config.adam_beta1, recipe.optim.config.adam_beta2) == (0.9, 0.999)
    assert recipe.optim.config.clip_grad == 1.0
    assert recipe.data.global_batch_size == batch
    assert recipe.data.seq_length == recipe.model.config.language_transformer_config.seq_length
    assert recipe.data.seq_length == 4096
    assert recipe.trainer.max_steps == steps
    assert (recipe.log.ckpt.every_n_train_steps, recipe.log.ckpt.save_top_k) == (interval, kept)
    config = recipe.model.config
    frozen = (
        config.freeze_vision_model,
        config.freeze_vision_projection,
        config.freeze_language_model,
    )
    assert tuple(not part for part in frozen) == trained


def test_parameter_counts_are_those_of_the_published_models():
    """Counted from the rows by hand: embedding, blocks, norms; with the padded table of Qwen."""
    from recipes.nvila.sizes import SIZES as ROWS

    published = {"1b": (151_936, 0.494e9), "2b": (151_936, 1.544e9)}
    published |= {"15b": (152_064, 14.770e9), "33b": (152_064, 32.764e9)}
    for size, (vocabulary, count) in published.items():
        row = ROWS[size]
        width, heads, groups, head = (
            row.hidden_size,
            row.num_attention_heads,
            row.num_query_groups,
            row.head_size,
        )
        qkv = (width + 1) * (heads + 2 * groups) * head
        block = qkv + heads * head * width + 3 * width * row.ffn_hidden_size + 2 * width
        tables = (1 if row.tied_embeddings else 2) * vocabulary * width
        assert row.num_layers * block + width + tables == pytest.approx(count, rel=1e-3)


def test_fp8_is_delayed_scaling_hybrid_with_a_history_of_16():
    from recipes.nvila.recipe import finetune_recipe

    plugin = finetune_recipe(size="15b", precision="fp8").trainer.plugins
    values = {
        "fp8": "hybrid",
        "fp8_recipe": "delayed",
        "fp8_amax_history_len": 16,
        "fp8_amax_compute_algo": "max",
        "fp8_margin": 0,
        "precision": "bf16-mixed",
    }
    assert {name: getattr(plugin, name) for name in values} == values
    assert "fp8" not in finetune_recipe(size="15b").trainer.plugins.__arguments__


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
@pytest.mark.parametrize("size", SIZES)
def test_every_rank_gets_rows_that_the_matrix_units_take(size, precision):
    from recipes.nvila.recipe import finetune_recipe

    recipe = finetune_recipe(size=size, precision=precision)
    strategy = recipe.trainer.strategy
    parts = strategy.tensor_model_parallel_size if strategy.sequence_parallel else 1
    multiple = recipe.data.pad_to_multiple_of
    assert multiple % parts == 0
    assert (multiple // parts) % (16 if precision == "fp8" else 8) == 0
    assert recipe.data.seq_length % multiple == 0


def test_each_stage_starts_from_the_one_before():
    from recipes.nvila.recipe import finetune_recipe

    starts = {
        stage: finetune_recipe(dir="runs", stage=stage, size="1b").resume.init_from
        for stage in STAGES
    }
    assert starts == {
        "align": "runs/assembled",
        "pretrain": "runs/align",
        "sft": "runs/pretrain",
    }
    recipe = finetune_recipe(stage="sft", init_from="elsewhere")
    assert recipe.resume.init_from == recipe.model.config.assets == recipe.data.assets
    assert recipe.data.assets == "elsewhere"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": "7b"}, "size: '7b' is unknown; allowed are nano, 1b, 2b, 15b, 33b."),
        ({"stage": "rl"}, "stage: 'rl' is unknown; allowed are align, pretrain, sft, preference."),
        ({"precision": "fp4"}, "precision: 'fp4' is unknown; allowed are fp32, bf16, fp8."),
        ({"peft_scheme": "qlora"}, "peft_scheme: 'qlora' is unknown; allowed are none, lora, dora"),
        ({"size": "33b", "num_gpus_per_node": 4}, "do not divide by tensor x pipeline"),
        ({"size": "1b", "num_nodes": 5}, "does not divide the global batch of 2304"),
    ],
)
def test_a_wrong_request_gets_one_sentence(arguments, message):
    from recipes.nvila.recipe import finetune_recipe

    with pytest.raises(ValueError, match=message.replace("(", r"\(")) as caught:
        finetune_recipe(**arguments)
    assert "\n" not in str(caught.value)


def test_every_keyword_is_one_that_its_class_takes():
    """Fiddle cannot see a typo where a class takes **kwargs, as MegatronStrategy does."""
    import inspect

    import fiddle as fdl

    from recipes.nvila.recipe import finetune_recipe

    checked = []
    for value, _ in fdl.daglish.iterate(finetune_recipe(size="15b")):
        if isinstance(value, fdl.Buildable):
            parents = getattr(value.__fn_or_cls__, "__mro__", (value.__fn_or_cls__, object))
            known = {
                name for parent in parents[:-1] for name in inspect.signature(parent).parameters
            }
            # Lightning's DDPStrategy passes it on to DistributedDataParallel.
            known |= {"gradient_as_bucket_view"}
            assert not value.__arguments__.keys() - known, value.__fn_or_cls__
            checked.append(value.__fn_or_cls__.__name__)
    assert "MegatronStrategy" in checked
    assert "PreloadedDataModule" in checked

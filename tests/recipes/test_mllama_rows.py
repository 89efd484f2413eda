"""MLlama's rows build offline, survive serialisation, and hold the tutorial's numbers."""

import socket

import pytest

pytestmark = pytest.mark.usefixtures("nemo")

SIZES = ("nano", "11b", "90b")


@pytest.mark.parametrize("precision", [None, "fp32", "bf16", "fp8"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("peft_scheme", [None, "none", "lora"])
def test_every_row_builds_offline_and_survives_serialisation(
    tmp_path, monkeypatch, size, peft_scheme, precision
):
    from nemo_run.core.serialization.zlib_json import ZlibJSONSerializer

    from recipes.mllama.recipe import finetune_recipe

    def refuse(*arguments, **keywords):
        raise AssertionError("a recipe asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.chdir(tmp_path)
    recipe = finetune_recipe(
        size=size,
        peft_scheme=peft_scheme,
        precision=precision,
        num_nodes=4 if size == "90b" else 1,
    )
    serializer = ZlibJSONSerializer()
    assert serializer.deserialize(serializer.serialize(recipe)) == recipe
    assert list(tmp_path.iterdir()) == []


def test_the_11b_row_is_the_tutorials():
    from recipes.mllama.recipe import finetune_recipe

    recipe = finetune_recipe(size="11b", dir="results", name="mllama_11b_finetune")
    assert recipe.trainer.strategy.tensor_model_parallel_size == 2
    assert recipe.trainer.strategy.pipeline_model_parallel_size == 1
    assert recipe.trainer.devices == 8
    assert recipe.trainer.max_steps == 1160
    assert recipe.optim.config.lr == 2e-5
    assert recipe.optim.lr_scheduler.min_lr == 2e-7
    assert recipe.optim.lr_scheduler.warmup_steps == 100
    assert (recipe.optim.config.adam_beta1, recipe.optim.config.adam_beta2) == (0.9, 0.95)
    assert (recipe.optim.config.weight_decay, recipe.optim.config.adam_eps) == (0.1, 1e-5)
    assert recipe.data.global_batch_size == 128
    assert recipe.data.micro_batch_size == 1
    assert recipe.data.seq_length == 2048
    assert recipe.log.log_dir == "results"
    assert recipe.log.name == "mllama_11b_finetune"


@pytest.mark.parametrize(
    ("size", "text_parameters"), [("11b", 9_775_192_080), ("90b", 87_666_865_192)]
)
def test_parameter_counts_are_those_of_the_published_models(size, text_parameters):
    """Counted from the rows by hand; the language part of 10,670,220,835 and 88,593,355,323."""
    from recipes.mllama.sizes import SIZES as ROWS

    row, vocabulary = ROWS[size], 128_256
    width, head = row.hidden_size, row.hidden_size // row.num_attention_heads
    attention = 2 * width * width + 2 * width * row.num_query_groups * head
    layer = attention + 3 * width * row.ffn_hidden_size + 2 * width
    cross = len(row.cross_attention_layers) * (2 * head + 2)
    tables = (2 * vocabulary + 8) * width
    assert row.num_layers * layer + cross + width + tables == text_parameters


def test_lora_is_on_all_linear_layers_of_the_language_model():
    import fiddle as fdl

    from models.lora import LanguageLoRA
    from recipes.mllama.recipe import finetune_recipe

    recipe = finetune_recipe(size="11b", peft_scheme="lora")
    assert recipe.peft.__fn_or_cls__ is LanguageLoRA
    built = fdl.build(recipe.peft)
    assert (built.dim, built.alpha, built.dropout) == (8, 32, 0.05)
    assert (built.freeze_language_model, built.freeze_vision_model) == (True, False)
    assert built.target_modules == ["*.language_model.*.linear_*"]
    assert all(".language_model." in name for name in built.target_modules)
    assert recipe.optim.config.lr == 1e-4
    assert recipe.trainer.strategy.ckpt_async_save is False


def test_it_starts_from_the_import():
    from recipes.mllama.recipe import finetune_recipe

    recipe = finetune_recipe(dir="runs", size="11b")
    starts = (recipe.resume.init_from, recipe.model.config.assets, recipe.data.assets)
    assert starts == ("runs/imported",) * 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": "7b"}, "size: '7b' is unknown; allowed are nano, 11b, 90b."),
        (
            {"peft_scheme": "qlora"},
            "peft_scheme: 'qlora' is unknown; allowed are none, lora, dora.",
        ),
        ({"size": "90b"}, "do not divide by tensor x pipeline"),
        ({"size": "11b", "num_nodes": 3}, "does not divide the global batch of 128"),
    ],
)
def test_a_wrong_request_gets_one_sentence(arguments, message):
    from recipes.mllama.recipe import finetune_recipe

    with pytest.raises(ValueError, match=message) as caught:
        finetune_recipe(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", ["mllama", "nvila"])
def test_shards_instead_of_files(family):
    import importlib

    import fiddle as fdl
    from nemo_run.core.serialization.zlib_json import ZlibJSONSerializer

    from datamodules.energon import EnergonDataModule

    finetune_recipe = importlib.import_module(f"recipes.{family}").finetune_recipe
    files, shards = finetune_recipe(data="files"), finetune_recipe(data="shards")
    shards.data.path = "wds"
    module = fdl.build(shards.data)
    assert type(module) is EnergonDataModule
    assert module.validation_split is None
    assert module.max_tiles_per_row == (16 if family == "mllama" else None)
    for name in (
        "assets",
        "seq_length",
        "global_batch_size",
        "micro_batch_size",
        "max_tiles",
        "pad_to_multiple_of",
        "num_workers",
        "bad_sample_file",
    ):
        assert getattr(shards.data, name) == getattr(files.data, name)
    serializer = ZlibJSONSerializer()
    assert serializer.deserialize(serializer.serialize(shards)) == shards
    with pytest.raises(ValueError, match="data.*tape.*files, shards"):
        finetune_recipe(data="tape")

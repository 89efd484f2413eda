"""What NeMo's stock Energon data module does wrong: each test fails on it."""

import itertools
from types import SimpleNamespace

import pytest
from fiddle.experimental.serialization import UnserializableValueError
from transformers import AutoTokenizer, MllamaImageProcessor

from tests.datamodules import energon_data
from tests.stock_classes import fails_on_stock

pytestmark = pytest.mark.usefixtures("nemo")

VALIDATION = 7


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """VQA samples, all with an image."""
    splits = {
        name: [energon_data.good_sample(3 * number, name[0]) for number in range(VALIDATION)]
        for name in ("train", "val")
    }
    return energon_data.write_set(
        tmp_path_factory.mktemp("shards") / "set", splits, energon_data.VQA
    )


@pytest.fixture
def arguments(shards, llama_assets):
    """Arguments of the data module, as the tutorial gives them to NeMo's."""

    def make(implementation):
        arguments = {
            "path": shards,
            "seq_length": 128,
            "micro_batch_size": 1,
            "global_batch_size": 1,
            "num_workers": 0,
        }
        if implementation == "ours":
            return arguments | {"assets": llama_assets}
        from nemo.collections.multimodal.data.energon.config import (
            ImageToken,
            MultiModalSampleConfig,
        )
        from nemo.collections.multimodal.data.energon.conversation import MLlamaTemplateConfig
        from nemo.collections.vlm.mllama.data.task_encoder import LlamaTaskEncoder

        tokenizer = AutoTokenizer.from_pretrained(llama_assets)
        image = ImageToken(token_id=tokenizer.convert_tokens_to_ids("<|image|>"))
        config = MultiModalSampleConfig(
            image_token=image, conversation_template_config=MLlamaTemplateConfig()
        )
        processor = MllamaImageProcessor.from_pretrained(llama_assets)
        return arguments | {
            "tokenizer": tokenizer,
            "image_processor": processor,
            "multimodal_sample_config": config,
            "task_encoder": LlamaTaskEncoder(tokenizer, processor, config),
        }

    return make


@pytest.fixture
def make_data(arguments):
    def make(implementation, **changes):
        if implementation == "stock":
            from nemo.collections.multimodal.data.energon import EnergonMultiModalDataModule

            data = EnergonMultiModalDataModule(**arguments("stock") | changes)
        else:
            from datamodules.energon import EnergonDataModule

            data = EnergonDataModule(**arguments("ours") | changes)
            data.setup("fit")
        data.trainer = SimpleNamespace(global_step=0, datamodule=data)
        return data

    return make


@pytest.mark.parametrize("form", ["instance", "config"])
@fails_on_stock(UnserializableValueError, "Tokenizer and task encoder are live objects.")
def test_a_recipe_with_the_data_module_can_be_sent_away(implementation, form, arguments):
    import fiddle
    import nemo_run as run
    from nemo.collections import llm
    from nemo.collections.multimodal.data.energon import EnergonMultiModalDataModule
    from nemo_run.core.serialization.zlib_json import ZlibJSONSerializer

    from datamodules.energon import EnergonDataModule

    kind = EnergonMultiModalDataModule if implementation == "stock" else EnergonDataModule
    original = kind(**arguments(implementation))
    # The tutorial puts an instance into its recipe, and runs that in its own process only.
    data = original if form == "instance" else run.Config(kind, **arguments(implementation))
    serializer = ZlibJSONSerializer()
    sent = serializer.deserialize(serializer.serialize(run.Partial(llm.finetune, data=data)))
    copy = fiddle.build(sent.data)
    assert isinstance(copy, kind)
    assert copy.path == original.path


def unsuitable_state(implementation, kind, make_data):
    """A checkpoint's state without the place of any rank, or with the places of two."""
    if kind == "lost":
        return {"consumed_samples": 8}
    data = make_data(implementation)
    loader = data.train_dataloader()
    if implementation == "stock":
        return {"consumed_samples": 8, "dataloader_state": loader.save_state_global(0) * 2}
    saved = data.state_dict()
    settings = saved["settings"] | {"data_parallel_size": 2}
    return {"consumed_samples": 8, "settings": settings, "places": saved["places"] * 2}


@pytest.mark.parametrize("kind", ["lost", "of two ranks"])
@fails_on_stock(pytest.fail.Exception, "Only a warning is given, and the data start again.")
def test_a_state_that_cannot_be_restored_ends_the_run(implementation, kind, make_data, monkeypatch):
    from megatron.core import num_microbatches_calculator

    # NeMo's class would end here for another reason: nobody has set up the calculator.
    monkeypatch.setattr(num_microbatches_calculator, "update_num_microbatches", lambda **_: None)
    state = unsuitable_state(implementation, kind, make_data)
    data = make_data(implementation)
    with pytest.raises(ValueError, match="of the training data"):
        data.load_state_dict(state)


@fails_on_stock(AssertionError, "Validation is made as training is, endless and shuffled.")
def test_validation_gives_every_sample_once_and_in_order(implementation, make_data):
    loader = make_data(implementation).val_dataloader()
    keys = []
    for batch in itertools.islice(loader, 2 * VALIDATION):
        keys += batch["__keys__"] if implementation == "stock" else batch["sample_keys"]
    found = [key.rpartition("/")[2] for key in keys]
    assert found == [f"v{3 * number:04d}" for number in range(VALIDATION)]


@fails_on_stock(AssertionError, "In a distributed run the workers of training are used instead.")
def test_validation_has_the_workers_that_were_asked_for(implementation, make_data, monkeypatch):
    from megatron.core import parallel_state

    place = {"rank": 0, "world_size": 1, "group": None}
    monkeypatch.setattr(parallel_state, "is_initialized", lambda: True)
    for name, value in place.items():
        monkeypatch.setattr(
            parallel_state, f"get_data_parallel_{name}", lambda *_, value=value, **__: value
        )
    if implementation == "stock":
        loader = make_data("stock", num_val_workers=2).val_dataloader()
        found = loader.num_workers
    else:
        loader = make_data("ours", num_validation_workers=2).val_dataloader()
        found = loader._dataset.worker_config.num_workers
    assert found == 2

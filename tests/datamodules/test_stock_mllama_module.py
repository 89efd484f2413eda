"""What the arguments of NeMo's stock MLlama data module promise and do not do."""

import dataclasses

import pytest
from transformers import MllamaImageProcessor

from tests.stock_classes import fails_on_stock

pytestmark = pytest.mark.usefixtures("nemo")


@pytest.fixture
def make_module(llama_assets, llama_tokenizer, write_jsonl, make_record, images, tmp_path):
    """Makes a data module over files of two records each, with the arguments of either kind."""

    def make(implementation, files=1, **options):
        record = make_record("<image>Q", "A", image="one.png")
        paths = [
            write_jsonl(tmp_path / f"{number}.jsonl", [record, record]) for number in range(files)
        ]
        if implementation == "stock":
            from nemo.collections.vlm.mllama.data.preloaded import MLlamaPreloadedDataModule

            return MLlamaPreloadedDataModule(
                paths,
                tokenizer=llama_tokenizer,
                image_processor=MllamaImageProcessor.from_pretrained(llama_assets),
                **options,
            )
        from datamodules.preloaded import PreloadedDataModule

        return PreloadedDataModule(
            paths, assets=llama_assets, image_folder=images, global_batch_size=1, **options
        )

    return make


@fails_on_stock(AssertionError, "Weights are stored; more than one file is refused by setup().")
def test_files_are_blended_by_their_weights(implementation, make_module):
    module = make_module(implementation, files=2, weights=[0.75, 0.25])
    module.setup("fit")
    blend = module._blend(module._part("train"))
    assert [blend[number][0] for number in range(400)].count(0) == 300


@fails_on_stock(AssertionError, "The default of data_config is the class and not an instance.")
def test_defaults_are_values(implementation, make_module):
    module = make_module(implementation)
    values = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    classes = [
        name
        for name, value in values.items()
        if isinstance(value, type) and dataclasses.is_dataclass(value)
    ]
    assert classes == []


@fails_on_stock(AttributeError, "use_packed_sequence is accepted, and then no data set is made.")
def test_packing_is_not_accepted_in_silence(implementation, make_module):
    if implementation == "stock":
        module = make_module(implementation, use_packed_sequence=True)
        module.setup("fit")
        assert len(module._train_ds) == 2
    else:
        with pytest.raises(TypeError, match="use_packed_sequence"):
            make_module(implementation, use_packed_sequence=True)

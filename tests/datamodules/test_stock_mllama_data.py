"""What NeMo's stock MLlama data set and task encoder do wrong: each test fails on them."""

import dataclasses
import json
import tarfile
from types import SimpleNamespace

import pytest
import torch
from transformers import MllamaImageProcessor

from datamodules.encoder import EncoderConfig
from datamodules.mllama_encoder import MllamaEncoder
from sample_loaders.conversation import parse_llava
from sample_loaders.errors import BadSample
from tests.stock_classes import fails_on_stock

pytestmark = pytest.mark.usefixtures("nemo")


@pytest.fixture
def make_stock_dataset(llama_assets, llama_tokenizer, images, tmp_path):
    """Makes NeMo's data set of LLaVA records."""

    def make(records, sequence_length=512, image_folder=images):
        from nemo.collections.vlm.mllama.data.preloaded import MLlamaDataset
        from nemo.collections.vlm.neva.data.config import ImageDataConfig

        path = tmp_path / "records.json"
        path.write_text(json.dumps(records))
        config = ImageDataConfig(conv_template="mllama", image_folder=str(image_folder))
        processor = MllamaImageProcessor.from_pretrained(llama_assets)
        dataset = MLlamaDataset(str(path), config, llama_tokenizer, processor, sequence_length)
        # Where its chat template comes from; as it stands, that is one model on the hub.
        dataset.conv = dataclasses.replace(dataset.conv, tokenizer_name_or_path=llama_assets)
        return dataset

    return make


@pytest.fixture
def make_batch(make_stock_dataset, make_llama_encoder):
    """Makes one micro-batch of LLaVA records."""

    def make(implementation, *records, sequence_length=512):
        if implementation == "stock":
            dataset = make_stock_dataset(records, sequence_length)
            return dataset.collate_fn([dataset[row] for row in range(len(records))])
        encoder = make_llama_encoder(seq_length=sequence_length)
        samples = [encoder.encode(parse_llava(record, key="k", source="s")) for record in records]
        return encoder.collator(8, None)(samples)

    return make


@pytest.fixture
def make_data(llama_assets, llama_tokenizer, write_jsonl, make_record, images, tmp_path):
    """Makes a data module over three parts of two records, each of which names its part."""

    def make(implementation, *parts):
        paths = []
        for part in parts:
            records = [make_record(f"<image>{part}", "A", image="one.png") for _ in range(2)]
            paths.append(write_jsonl(tmp_path / f"{part}.jsonl", records))
        if implementation == "stock":
            from nemo.collections.vlm.mllama.data.preloaded import MLlamaPreloadedDataModule
            from nemo.collections.vlm.neva.data.config import ImageDataConfig

            data = MLlamaPreloadedDataModule(
                paths=paths,
                data_config=ImageDataConfig(conv_template="mllama", image_folder=images),
                tokenizer=llama_tokenizer,
                image_processor=MllamaImageProcessor.from_pretrained(llama_assets),
                num_workers=0,
            )
        else:
            from datamodules.preloaded import PreloadedDataModule

            names = ("train_paths", "validation_paths", "test_paths")
            data = PreloadedDataModule(
                **dict(zip(names, paths, strict=False)),
                assets=llama_assets,
                image_folder=images,
                global_batch_size=1,
                num_workers=0,
            )
        data.trainer = SimpleNamespace(global_step=0)
        data.setup("fit")
        return data

    return make


@fails_on_stock(AttributeError, "The message about a cut reads seq_length, which is never set.")
def test_a_batch_that_is_too_long_is_cut(implementation, make_batch, make_record):
    turns = ["<image>\nWhat is this?", "It is a cat."] + ["What is this?", "It is a cat."] * 6
    record = make_record(*turns, image="one.png")
    assert make_batch("ours", record)["tokens"].shape[1] > 64
    batch = make_batch(implementation, record, sequence_length=64)
    assert batch["tokens"].shape == batch["labels"].shape
    assert batch["tokens"].shape[1] <= 64


@fails_on_stock(RuntimeError, "Ratio ids and tile counts get one place too few for absent images.")
def test_a_batch_may_mix_numbers_of_images(implementation, make_batch, make_record):
    one = make_record("<image>Q", "A", image=["one.png"])
    three = make_record("<image><image><image>Q", "A", image=["one.png"] * 3)
    batch = make_batch(implementation, one, three)
    if implementation == "stock":
        found = (batch["num_chunks"] > 0).sum(dim=1)
    else:
        found = batch["images_per_sample"]
    assert found.tolist() == [1, 3]


@fails_on_stock(AssertionError, "One path is taken, and read for validation as well.")
def test_training_and_validation_have_files_of_their_own(
    implementation, make_data, llama_tokenizer
):
    data = make_data(implementation, "training", "validation")
    if implementation == "stock":
        found = [str(part.list_data_dict[0]) for part in (data._train_ds, data._validation_ds)]
    else:
        loaders = (data.train_dataloader(), data.val_dataloader())
        found = [llama_tokenizer.decode(loader.dataset[0].tokens) for loader in loaders]
    assert ["training" in text for text in found] == [True, False]
    assert ["validation" in text for text in found] == [False, True]


@fails_on_stock(AttributeError, "The data set of the test loader is never made.")
def test_there_are_test_data(implementation, make_data):
    parts = ["training"] if implementation == "stock" else ["training", "validation", "test"]
    data = make_data(implementation, *parts)
    assert len(data.test_dataloader().dataset) == 2


@fails_on_stock(ValueError, "A missing image is None, on which the image processor breaks down.")
def test_a_missing_image_is_a_bad_sample_with_its_name(
    implementation, make_stock_dataset, make_llama_encoder, make_record, images, tmp_path
):
    record = make_record("<image>Q", "A", image="gone.png")
    archive = tmp_path / "images.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(f"{images}/one.png", "one.png")

    def read():
        if implementation == "stock":
            return make_stock_dataset([record], image_folder=archive)[0]
        return make_llama_encoder().encode(parse_llava(record, key="k", source="s"))

    with pytest.raises(BadSample, match=r"gone\.png"):
        read()


@fails_on_stock(AssertionError, "The search for answers ends at the first that is not found.")
def test_every_answer_is_learnt(
    implementation, llama_tokenizer, llama_tokenizer_with, new_llama_assets, make_record, tmp_path
):
    # The template trims texts, so the tokens of the second answer alone do not occur in the whole.
    template = llama_tokenizer.chat_template.replace("else part.text", "else part.text | trim")
    tokenizer = llama_tokenizer_with(template)
    questions, answers = ["Q", "R", "S"], ["4", "5 ", "6"]
    if implementation == "stock":
        from nemo.collections.multimodal.data.energon.config import MultiModalSampleConfig
        from nemo.collections.multimodal.data.energon.conversation import MLlamaTemplateConfig
        from nemo.collections.vlm.mllama.data.sample_encoder import Llama3SampleEncoder

        config = MultiModalSampleConfig(conversation_template_config=MLlamaTemplateConfig())
        encoder = Llama3SampleEncoder(tokenizer, None, config)
        sample = SimpleNamespace(context=questions, answers=answers)
        tokens = encoder.tokenize(encoder.apply_prompt_template(sample))
        labels = encoder.compute_labels(tokens, sample).numpy()
    else:
        folder = new_llama_assets(tmp_path / "assets", tokenizer)
        turns = [text for pair in zip(questions, answers, strict=True) for text in pair]
        record = parse_llava(make_record(*turns), key="k", source="s")
        encoded = MllamaEncoder(EncoderConfig(assets=str(folder), seq_length=512)).encode(record)
        labels = encoded.labels
    assert tokenizer.decode(labels[labels >= 0]) == "4<|eot_id|>5<|eot_id|>6<|eot_id|>"


@fails_on_stock(AssertionError, "A batch in which nothing is learnt ends the run.")
def test_a_batch_in_which_nothing_is_learnt_is_a_batch(implementation, make_llama_encoder):
    if implementation == "stock":
        from nemo.collections.multimodal.data.energon.config import MultiModalSampleConfig
        from nemo.collections.vlm.mllama.data.task_encoder import LlamaTaskEncoder

        sample = SimpleNamespace(
            __key__="k",
            images=torch.zeros(1, 4, 3, 28, 28),
            tokens=torch.ones(8, dtype=torch.long),
            labels=torch.full((8,), -100),
            loss_mask=torch.zeros(8),
            vision_mask=torch.zeros(1, 2, dtype=torch.long),
            aspect_ratio_ids=torch.ones(1, dtype=torch.long),
            aspect_ratio_mask=torch.ones(1, 4),
            num_tiles=[1],
        )
        loss_mask = LlamaTaskEncoder(None, None, MultiModalSampleConfig()).batch([sample]).loss_mask
    else:
        encoder = make_llama_encoder()
        loss_mask = encoder.collator(8, None)([encoder.filler("k")])["loss_mask"]
    assert loss_mask.sum() == 0


@fails_on_stock(AssertionError, "Without an image there is a row all the same, of chance numbers.")
def test_a_text_without_images_has_no_vision_mask(implementation, make_batch, make_record):
    batch = make_batch(implementation, make_record("Q", "A"))
    rows = batch["batch_masks"][0] if implementation == "stock" else batch["image_spans"]
    assert rows.shape == (0, 2)


@fails_on_stock(AssertionError, "The image token is looked for as number 128256 of any tokenizer.")
def test_the_image_token_is_that_of_the_tokenizer(
    implementation, make_batch, make_record, llama_tokenizer, monkeypatch
):
    from nemo.collections.vlm.mllama.model import utils

    # What stands in the row of a text without images is then known, and the outcome not chance.
    known = SimpleNamespace(empty=torch.zeros, tensor=torch.tensor, long=torch.long)
    monkeypatch.setattr(utils, "torch", known)
    batch = make_batch(implementation, make_record("<image>Q", "A", image="one.png"))
    image = llama_tokenizer.convert_tokens_to_ids("<|image|>")
    places = (batch["tokens"][0] == image).nonzero().flatten().tolist()
    assert len(places) == 1
    rows = batch["batch_masks"][0] if implementation == "stock" else batch["image_spans"]
    assert rows[:, 0].tolist() == places

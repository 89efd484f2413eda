"""Samples through the encoder, against transformers' own processor on the same conversation."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from transformers import MllamaImageProcessor, MllamaProcessor

from datamodules.mllama_encoder import MllamaEncoder
from models.mllama.image_spans import image_spans
from sample_loaders.conversation import parse_llava
from sample_loaders.errors import BadSample, Reason

BEGIN = "<|begin_of_text|>"
DAY = "<|start_header_id|>system<|end_header_id|>\n\nDay: 26 Jul 2024\n\n"
USER = "<|start_header_id|>user<|end_header_id|>\n\n"
ASSISTANT = "<|start_header_id|>assistant<|end_header_id|>\n\n"
END, PICTURE = "<|eot_id|>", "<|image|>"


@pytest.fixture(scope="module")
def processor(llama_assets, llama_tokenizer):
    images = MllamaImageProcessor.from_pretrained(llama_assets)
    return MllamaProcessor(images, llama_tokenizer, chat_template=llama_tokenizer.chat_template)


def parsed(record):
    return parse_llava(record, key="k", source="s")


def learnt_text(encoded, tokenizer):
    return tokenizer.decode(encoded.labels[encoded.labels >= 0])


def dense_mask(encoded):
    """The mask [length, images, 4 tiles] of transformers, from spans and numbers of tiles."""
    mask = np.zeros((len(encoded.tokens), len(encoded.image_spans), 4), dtype=np.int64)
    pairs = zip(encoded.image_spans, encoded.tiles_per_image, strict=True)
    for image, ((start, end), tiles) in enumerate(pairs):
        mask[start:end, image, :tiles] = 1
    return mask


def scaled(encoded):
    """Tiles [images, 4, 3, 28, 28] as the model takes them: scaled, and filled up with zeros."""
    mean = np.array([0.5, 0.5, 0.5]).reshape(3, 1, 1)
    pixels = (encoded.tiles / 255 - mean) / 0.5
    filled = np.zeros((len(encoded.tiles_per_image), 4, 3, 28, 28))
    first = 0
    for image, tiles in enumerate(encoded.tiles_per_image):
        filled[image, :tiles] = pixels[first : first + tiles]
        first += tiles
    assert first == len(encoded.tiles)
    return filled


CONVERSATIONS = {
    "one image": (["<image>\nWhat?", "A cat."], ["one.png"]),
    "text only": (["Q", "A", "この画像は何ですか?", "薔薇と𠮷です。"], []),
    "several turns": (["<image>\nQ", "A", "R", "B", "S", "C"], ["photo.jpg"]),
    "several in one turn": (["<image>here<image>\nthere<image>", "A"], ["one.png", "wide.png"] * 2),
    "consecutive": (["<image>\n<image>\n<image>\nQ", "A"], ["wide.png", "one.png", "photo.jpg"]),
    "second turn only": (["Q", "A", "<image>\nR", "B"], ["photo.jpg"]),
    "both turns": (["Q<image>", "A", "<image>R<image>", "B"], ["one.png", "wide.png", "one.png"]),
    "in an answer": (["Q", "see <image>\nhere", "R", "<image>"], ["wide.png", "one.png"]),
    "Japanese": (["<image>\n数字を左から順に読んでください。", "三𠮷、鬱。"], ["wide.png"]),
}


def make(make_record, name):
    texts, images = CONVERSATIONS[name]
    images = images[: sum(text.count("<image>") for text in texts)]
    return make_record(*texts, image=images or None), texts, images


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_agrees_with_the_published_processor(
    make_llama_encoder, make_record, images, processor, name
):
    record, texts, names = make(make_record, name)
    encoder = make_llama_encoder(image_resize="exact")
    encoded = encoder.encode(parsed(record))
    messages = []
    for number, text in enumerate(texts):
        content = []
        for piece_number, piece in enumerate(text.split("<image>")):
            if piece_number:
                content.append({"type": "image"})
                piece = piece[1:] if piece.startswith("\n") else piece
            content.append({"type": "text", "text": piece})
        messages.append({"role": ("user", "assistant")[number % 2], "content": content})
    text = processor.apply_chat_template(messages, date_string="26 Jul 2024")
    pictures = [Image.open(f"{images}/{name}") for name in names]
    expected = processor(
        text=text, images=[pictures] if pictures else None, add_special_tokens=False
    )
    assert encoded.tokens.tolist() == expected["input_ids"][0]
    assert encoder.length(parsed(record)) == len(encoded.tokens) == len(encoded.labels)
    assert len(encoded.image_spans) == len(names)
    assert encoded.tiles.dtype == np.uint8
    if names:
        assert (dense_mask(encoded) == expected["cross_attention_mask"][0]).all()
        pixels = np.asarray(expected["pixel_values"][0])
        published = MllamaImageProcessor()
        mean, deviation = published.image_mean, published.image_std
        assert mean == [0.5] * 3
        assert deviation == [0.5] * 3
        # Padding is zero before scaling in both, and an empty tile is zero after it.
        assert np.abs(scaled(encoded) - pixels).max() < 1e-6
        assert encoded.aspect_ratio_ids.tolist() == expected["aspect_ratio_ids"][0].tolist()


def test_text_and_answers(make_llama_encoder, make_record, llama_tokenizer):
    record = make_record("Q", "It is 七.\n", "<image>\nR", "see <image>", image=["one.png"] * 2)
    encoded = make_llama_encoder().encode(parsed(record))
    assert llama_tokenizer.decode(encoded.tokens) == (
        BEGIN
        + USER
        + "Q"
        + END
        + ASSISTANT
        + "It is 七.\n"
        + END
        + USER
        + PICTURE
        + "R"
        + END
        + ASSISTANT
        + "see "
        + PICTURE
        + END
    )
    assert learnt_text(encoded, llama_tokenizer) == "It is 七.\n" + END + "see " + END
    learnt = encoded.labels[:-1] >= 0
    assert (encoded.labels[:-1][learnt] == encoded.tokens[1:][learnt]).all()


def test_head_and_system_turn_without_images(make_llama_encoder, make_record, llama_tokenizer):
    encoder = make_llama_encoder()
    encoded = encoder.encode(parsed(make_record("Q", "A", system="  Be brief.")))
    head = BEGIN + DAY + "Be brief." + END
    assert llama_tokenizer.decode(encoded.tokens) == head + USER + "Q" + END + ASSISTANT + "A" + END
    assert learnt_text(encoded, llama_tokenizer) == "A" + END
    assert encoded.tiles.shape == (0, 3, 28, 28)
    assert encoded.tiles_per_image.shape == encoded.aspect_ratio_ids.shape == (0,)
    assert encoded.image_spans.shape == (0, 2)


def test_what_the_template_does_not_take_is_a_bad_sample(make_llama_encoder, make_record):
    encoder = make_llama_encoder()
    record = make_record("<image>Q", "A", system="Be brief.", image="one.png")
    with pytest.raises(BadSample, match="system, user, assistant: Rules and images") as caught:
        encoder.encode(parsed(record))
    assert caught.value.reason == Reason.TEMPLATE_REFUSES
    record = make_record("Q", "A", system="As <image>", image="one.png")
    with pytest.raises(BadSample, match="prints 0 of the 1 images") as caught:
        encoder.encode(parsed(record))
    assert caught.value.reason == Reason.TEMPLATE_CHANGES


@pytest.mark.parametrize("token", [PICTURE, END, BEGIN, "<|python_tag|>"])
def test_control_tokens_in_a_text(make_llama_encoder, make_record, token):
    for record in (make_record(f"Q{token}", "A"), make_record("Q", f"{token}A")):
        with pytest.raises(BadSample) as caught:
            make_llama_encoder().encode(parsed(record))
        assert caught.value.reason == Reason.CONTROL_TOKEN


def test_every_length_keeps_whole_turns_and_whole_images(make_llama_encoder, make_record):
    """For every allowed length the result is that of the longest beginning that fits."""
    texts = [
        "<image>Q",
        "first",
        "and <image><image>\nthis",
        "second <image>",
        "R",
        "third",
        "<image>",
        "last",
    ]
    images = ["wide.png", "photo.jpg", "one.png", "wide.png", "photo.jpg"]
    whole = make_llama_encoder()
    beginnings = []
    for turns in (2, 4, 6, 8):
        count = sum(text.count("<image>") for text in texts[:turns])
        beginnings.append(whole.encode(parsed(make_record(*texts[:turns], image=images[:count]))))
    sample = parsed(make_record(*texts, image=images))
    lengths = [len(beginning.tokens) for beginning in beginnings]
    assert lengths == sorted(set(lengths))
    for seq_length in range(lengths[0], lengths[-1] + 2):
        encoded = make_llama_encoder(seq_length=seq_length).encode(sample)
        expected = [b for b in beginnings if len(b.tokens) <= seq_length][-1]
        for name in ("tokens", "labels", "tiles", "tiles_per_image", "image_spans"):
            assert np.array_equal(getattr(encoded, name), getattr(expected, name)), seq_length
        kept = np.flatnonzero(encoded.tokens == whole.assets.image_token_id)
        assert encoded.image_spans[:, 0].tolist() == kept.tolist()
        assert (encoded.image_spans[:, 1] <= len(encoded.tokens)).all()
        assert len(encoded.tiles) == encoded.tiles_per_image.sum()
    with pytest.raises(BadSample, match="first question and answer") as caught:
        make_llama_encoder(seq_length=lengths[0] - 1).encode(sample)
    assert caught.value.reason == Reason.TOO_LONG


def test_lost_images_are_not_looked_at(make_llama_encoder, make_record):
    kept = parsed(make_record("<image>Q", "A", image="one.png"))
    record = make_record("<image>Q", "A", "<image>R", "B", image=["one.png", "none.png"])
    with pytest.raises(BadSample) as caught:
        make_llama_encoder().length(parsed(record))
    assert caught.value.reason == Reason.MISSING_IMAGE
    encoder = make_llama_encoder(seq_length=make_llama_encoder().length(kept))
    assert len(encoder.encode(parsed(record)).tiles_per_image) == 1


def test_head_that_comes_back_with_the_last_image_gone(make_llama_encoder, make_record):
    """Without the image the template prints its head, which may be what no longer fits."""
    short = parsed(make_record("Q", "A"))
    sample = parsed(make_record("Q", "A", "<image>R", "B" * 60, image="one.png"))
    room = make_llama_encoder().length(short)
    encoded = make_llama_encoder(seq_length=room).encode(sample)
    assert (encoded.tokens == make_llama_encoder().encode(short).tokens).all()
    with pytest.raises(BadSample):
        make_llama_encoder(seq_length=room - 1).encode(sample)


def test_images_are_decoded_once_and_not_by_planning(make_llama_encoder, make_record, monkeypatch):
    decoded, load = [], ImageFile.ImageFile.load

    def counting(image):
        if image.tile:  # not decoded yet
            decoded.append(image.size)
        return load(image)

    monkeypatch.setattr(ImageFile.ImageFile, "load", counting)
    sample = parsed(make_record("<image>Q<image>", "A", image=["photo.jpg", "wide.png"]))
    assert make_llama_encoder().plan(sample).tiles == 4 + 3
    assert decoded == []
    assert len(make_llama_encoder().encode(sample).tiles) == 4 + 3
    assert decoded == [(640, 480), (168, 56)]


def test_fewer_tiles_than_the_model_has(
    make_llama_encoder, make_record, new_image, tmp_path, processor
):
    new_image(tmp_path / "tall.png", 480, 640)
    folder = str(tmp_path)
    sample = parsed(make_record("<image>Q", "A", image="tall.png"))
    full = make_llama_encoder(image_folder=folder).encode(sample)
    # The id is one of the model's eight canvases, whatever the bound of the data is.
    for max_tiles, tiles, ratio in ((4, 4, 6), (2, 2, 5), (1, 1, 1)):
        encoder = make_llama_encoder(max_tiles=max_tiles, image_folder=folder, image_resize="exact")
        encoded = encoder.encode(sample)
        with Image.open(tmp_path / "tall.png") as picture:
            expected = processor.image_processor(
                picture, max_image_tiles=max_tiles, do_rescale=False, do_normalize=False
            )
        assert (encoded.tiles == expected["pixel_values"][0, 0, :tiles]).all()
        assert encoded.tiles_per_image.tolist() == [tiles]
        assert encoded.aspect_ratio_ids.tolist() == [ratio]
        assert (encoded.tokens == full.tokens).all()
    with pytest.raises(ValueError, match="max_tiles is 5, but the model .* no more than 4"):
        make_llama_encoder(max_tiles=5).prepare()


def test_transparent_image_stands_on_white(make_llama_encoder, make_record, tmp_path, processor):
    pixels = np.random.default_rng(3).integers(0, 256, (40, 30, 4), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    sample = parsed(make_record("<image>Q", "A", image="x.png"))
    encoded = make_llama_encoder(image_folder=str(tmp_path)).encode(sample)
    expected = processor.image_processor(
        Image.fromarray(pixels), do_rescale=False, do_normalize=False
    )
    assert (encoded.tiles == expected["pixel_values"][0, 0, : len(encoded.tiles)]).all()


@pytest.mark.parametrize("name", ["photo.jpg", "wide.png"])
def test_truncated_image(make_llama_encoder, make_record, images, tmp_path, name):
    with open(f"{images}/{name}", "rb") as whole:
        content = whole.read()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    sample = parsed(make_record("<image>Q", "A", image=name))
    with pytest.raises(BadSample, match=name) as caught:
        make_llama_encoder(image_folder=str(tmp_path)).encode(sample)
    assert caught.value.reason == Reason.UNREADABLE_IMAGE


def test_batch_of_text_images_and_filler(make_llama_encoder, make_record):
    encoder = make_llama_encoder()
    samples = [
        encoder.encode(parsed(make_record("<image>Q<image>", "A", image=["one.png", "wide.png"]))),
        encoder.encode(parsed(make_record("Q", "A"))),
        encoder.filler("none"),
    ]
    batch = encoder.collator(8, None)(samples)
    assert batch["images_per_sample"].tolist() == [2, 0, 0]
    assert batch["image_spans"].tolist() == samples[0].image_spans.tolist()
    assert len(batch["tiles"]) == batch["tiles_per_image"].sum()
    assert batch["tokens"][2].unique().tolist() == [encoder.pad_token_id]
    assert not batch["loss_mask"][2].any()
    assert batch["tokens"].dtype == torch.int64
    empty = encoder.collator(8, 64)(samples[1:])
    assert empty["tiles"].shape == (0, 3, 28, 28)
    assert empty["image_spans"].shape == (0, 2)
    assert empty["tokens"].shape == (2, 64)


def test_encoder_can_be_pickled_before_and_after_use(make_llama_encoder, make_record):
    sample = parsed(make_record("<image>Q", "A", image="wide.png"))
    encoder = make_llama_encoder()
    before = pickle.loads(pickle.dumps(encoder))
    expected = encoder.encode(sample)
    for copy in (before, pickle.loads(pickle.dumps(encoder))):
        assert isinstance(copy, MllamaEncoder)
        assert (copy.encode(sample).tokens == expected.tokens).all()


def test_image_spans_of_the_encoder_are_positions_of_its_ids(make_llama_encoder, make_record):
    record = make_record("a<image><image>b", "c", "d<image>", "e", image=["one.png"] * 3)
    encoded = make_llama_encoder().encode(parsed(record))
    first, second, third = np.flatnonzero(
        encoded.tokens == make_llama_encoder().assets.image_token_id
    )
    end = len(encoded.tokens)
    assert encoded.image_spans.tolist() == [[first, third], [second, third], [third, end]]
    assert image_spans(encoded.tokens[:third], encoded.tokens[first]).tolist() == [
        [first, third],
        [second, third],
    ]


def test_tile_budget_takes_whole_questions(make_llama_encoder, make_record):
    record = make_record("<image>\nQ", "A", "<image>\nR", "B", image=["wide.png", "wide.png"])
    whole = make_llama_encoder().encode(parsed(record))
    tiles = whole.tiles_per_image.tolist()
    assert tiles[0] == tiles[1] > 1
    cut = make_llama_encoder(max_tiles_per_sample=2 * tiles[0] - 1).encode(parsed(record))
    assert cut.tiles_per_image.tolist() == tiles[:1]
    with pytest.raises(BadSample, match=f"or more than {tiles[0] - 1} tiles") as raised:
        make_llama_encoder(max_tiles_per_sample=tiles[0] - 1).encode(parsed(record))
    assert raised.value.reason == Reason.TOO_LONG
    small = make_llama_encoder().encode(parsed({**record, "max_tiles": 1}))
    assert small.tiles_per_image.tolist() == [1, 1]

"""Samples through the encoder: 4 positions and a newline per tile, and a line of text for each."""

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.encoder import EncoderConfig
from datamodules.nvila_assets import load_nvila_assets
from datamodules.nvila_encoder import NvilaEncoder
from models.hf_code.tiling_nvila_lite import cut_tiles
from sample_loaders.conversation import parse_llava
from sample_loaders.errors import BadSample, Reason

HEAD = "<|im_start|>system\nあなたは日本語で答えるアシスタントです。<|im_end|>\n"


def parsed(record):
    return parse_llava(record, key="k", source="s")


def tile_text(tiles):
    """What decoding the positions of some tiles gives: features, closing newline, newline."""
    return ("<image>" * 4 + "\n\n") * tiles


def check(encoder, sample, text, answers, tiles):
    """Compares an encoded sample with hand-written text and answers."""
    tokenizer = encoder.assets.tokenizer
    encoded = encoder.encode(sample)
    assert tokenizer.decode(encoded.tokens) == text
    assert tokenizer.decode(encoded.labels[encoded.labels >= 0]) == answers
    learnt = encoded.labels >= 0
    assert (encoded.labels[:-1][learnt[:-1]] == encoded.tokens[1:][learnt[:-1]]).all()
    assert encoded.tiles.shape == (tiles, 3, 56, 56)
    assert encoded.tiles.dtype == np.uint8
    assert (encoded.tokens == encoder.assets.image_token_id).sum() == 4 * tiles
    assert encoder.length(sample) == len(encoded.tokens) == len(encoded.labels)
    return encoded


def test_text_only(make_encoder, make_record):
    check(
        make_encoder(),
        parsed(make_record("Q", "A")),
        HEAD + "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n",
        "A<|im_end|>",
        tiles=0,
    )


def test_one_tile(make_encoder, make_record, images):
    encoded = check(
        make_encoder(),
        parsed(make_record("<image>\nQ", "A", image="one.png")),
        HEAD + f"<|im_start|>user\n{tile_text(1)}Q<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n",
        "A<|im_end|>",
        tiles=1,
    )
    with Image.open(f"{images}/one.png") as image:
        assert (encoded.tiles[0] == np.asarray(image).transpose(2, 0, 1)).all()


def test_wide_image_is_cut_into_tiles_and_a_thumbnail(make_encoder, make_record, images):
    encoded = check(
        make_encoder(),
        parsed(make_record("<image>\nQ", "A", image="wide.png")),
        HEAD + f"<|im_start|>user\n{tile_text(4)}Q<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n",
        "A<|im_end|>",
        tiles=4,
    )
    with Image.open(f"{images}/wide.png") as image:
        pixels = np.asarray(image).transpose(2, 0, 1)
    for number in range(3):
        assert (encoded.tiles[number] == pixels[:, :, 56 * number : 56 * (number + 1)]).all()


def test_several_images_in_one_turn_and_in_later_turns(make_encoder, make_record, images):
    record = make_record(
        "<image><image>\nQ", "A", "now <image>\n", "B", image=["wide.png", "one.png", "one.png"]
    )
    encoded = check(
        make_encoder(image_resize="exact"),
        parsed(record),
        HEAD + f"<|im_start|>user\n{tile_text(4)}{tile_text(1)}Q<|im_end|>\n"
        f"<|im_start|>assistant\nA<|im_end|>\n<|im_start|>user\nnow {tile_text(1)}<|im_end|>\n"
        "<|im_start|>assistant\nB<|im_end|>\n",
        "A<|im_end|>B<|im_end|>",
        tiles=6,
    )
    with Image.open(f"{images}/wide.png") as image:
        assert (encoded.tiles[:4] == cut_tiles(image, 56, 12)).all()
    assert (encoded.tiles[4] == encoded.tiles[5]).all()


def test_image_in_an_answer_is_read_but_not_learnt(make_encoder, make_record):
    check(
        make_encoder(),
        parsed(make_record("Q", "see <image>\nhere", image="one.png")),
        HEAD + "<|im_start|>user\nQ<|im_end|>\n"
        f"<|im_start|>assistant\nsee {tile_text(1)}here<|im_end|>\n",
        "see here<|im_end|>",
        tiles=1,
    )


def test_tile_bound_of_the_configuration(make_encoder, make_record):
    sample = parsed(make_record("<image>Q", "A", image="photo.jpg"))
    assert len(make_encoder().encode(sample).tiles) == 13
    assert len(make_encoder(max_tiles=6).encode(sample).tiles) == 7
    assert len(make_encoder(max_tiles=1).encode(sample).tiles) == 1


def test_tile_bound_of_the_model(make_encoder, make_record, tmp_path, tokenizer, new_assets):
    folder = new_assets(tmp_path, tokenizer, max_tiles=6)
    sample = parsed(make_record("<image>Q", "A", image="photo.jpg"))
    assert len(make_encoder(assets=str(folder)).encode(sample).tiles) == 7
    assert len(make_encoder(assets=str(folder), max_tiles=12).encode(sample).tiles) == 13


def test_grids_shrink_until_the_sample_fits(make_encoder, make_record):
    sample = parsed(make_record("<image>Q", "A", image="photo.jpg"))
    full = make_encoder().length(sample)
    text = full - 13 * 6
    # 4:3 grids of at most 12, 11, ..., 1 tiles are 4x3, then 3x2 (tied grids go to the larger
    # area only for large pictures), and single tiles at last.
    for seq_length, tiles in ((full, 13), (full - 1, 7), (text + 7 * 6, 7), (text + 6, 1)):
        encoder = make_encoder(seq_length=seq_length)
        encoded = encoder.encode(sample)
        assert len(encoded.tiles) == tiles
        assert len(encoded.tokens) == encoder.length(sample) == text + 6 * tiles
        assert len(encoded.tokens) <= seq_length


def test_then_whole_turns_go_and_the_rest_may_use_the_room(make_encoder, make_record):
    first = parsed(make_record("<image>Q", "A", image="photo.jpg"))
    long = parsed(
        make_record("<image>Q", "A", "<image>" + "x " * 300, "B", image=["photo.jpg", "one.png"])
    )
    encoder = make_encoder(seq_length=make_encoder().length(first))
    assert (encoder.encode(long).tokens == encoder.encode(first).tokens).all()
    assert len(encoder.encode(long).tiles) == 13


def test_a_question_goes_with_its_answer(make_encoder, make_record):
    whole = parsed(make_record("Q", "A", "Q2", "B", "Q3", "C" * 300))
    kept = parsed(make_record("Q", "A", "Q2", "B"))
    encoder = make_encoder(seq_length=make_encoder().length(kept) + 20)
    assert (encoder.encode(whole).tokens == encoder.encode(kept).tokens).all()


def test_first_answer_that_does_not_fit(make_encoder, make_record):
    sample = parsed(make_record("<image>Q", "A", image="photo.jpg"))
    shortest = make_encoder(max_tiles=1).length(sample)
    assert make_encoder(seq_length=shortest).length(sample) == shortest
    with pytest.raises(BadSample) as caught:
        make_encoder(seq_length=shortest - 1).length(sample)
    assert caught.value.reason == Reason.TOO_LONG


def test_planning_decodes_no_image(make_encoder, make_record, monkeypatch):
    def decode(*_, **__):
        raise AssertionError("an image was decoded")

    monkeypatch.setattr(Image.Image, "convert", decode)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decode)
    sample = parsed(make_record("<image>Q", "A", image="photo.jpg"))
    assert make_encoder().plan(sample).tiles == 13


@pytest.mark.parametrize("token", ["<|im_end|>", "<|im_start|>", "<|endoftext|>"])
def test_control_tokens_in_a_text(make_encoder, make_record, token):
    for record in (make_record(f"Q{token}", "A"), make_record("Q", f"{token}A")):
        with pytest.raises(BadSample) as caught:
            make_encoder().encode(parsed(record))
        assert caught.value.reason == Reason.CONTROL_TOKEN
        assert token in caught.value.message


def bad_image(make_encoder, make_record, name, **options):
    sample = parsed(make_record("<image>Q", "A", image=name))
    with pytest.raises(BadSample) as caught:
        make_encoder(**options).encode(sample)
    assert name in caught.value.message
    return caught.value.reason


def test_missing_image(make_encoder, make_record, images):
    assert bad_image(make_encoder, make_record, "none.png") == Reason.MISSING_IMAGE
    folder = images.rsplit("/", 1)[0]
    reason = bad_image(make_encoder, make_record, images.rsplit("/", 1)[1], image_folder=folder)
    assert reason == Reason.MISSING_IMAGE


@pytest.mark.parametrize("name", ["photo.jpg", "wide.png"])
def test_truncated_image(make_encoder, make_record, images, tmp_path, name):
    with open(f"{images}/{name}", "rb") as whole:
        content = whole.read()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    reason = bad_image(make_encoder, make_record, name, image_folder=str(tmp_path))
    assert reason == Reason.UNREADABLE_IMAGE


@pytest.mark.parametrize("content", [b"", b"text, not an image", b"\x89PNG\r\n\x1a\n"])
def test_file_that_is_no_image(make_encoder, make_record, tmp_path, content):
    (tmp_path / "x.png").write_bytes(content)
    reason = bad_image(make_encoder, make_record, "x.png", image_folder=str(tmp_path))
    assert reason == Reason.UNREADABLE_IMAGE


def test_too_many_pixels(make_encoder, make_record, tmp_path, monkeypatch):
    assert (
        bad_image(make_encoder, make_record, "photo.jpg", max_image_pixels=640 * 480 - 1)
        == Reason.TOO_MANY_PIXELS
    )
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # PIL's own guard comes first
    assert bad_image(make_encoder, make_record, "photo.jpg") == Reason.TOO_MANY_PIXELS


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "I;16"])
def test_every_colour_mode_becomes_rgb(make_encoder, make_record, tmp_path, mode):
    name = "x.tiff"
    Image.new(mode, (56, 56)).save(tmp_path / name)
    sample = parsed(make_record("<image>Q", "A", image=name))
    assert make_encoder(image_folder=str(tmp_path)).encode(sample).tiles.shape == (1, 3, 56, 56)


def test_sample_without_supervised_token(make_encoder, make_record, monkeypatch):
    # No parsed sample gets here; the guard stands for other sources of samples.
    monkeypatch.setattr(
        "datamodules.nvila_encoder.tokenize_conversation",
        lambda rendered, tokenizer, image_text: (np.array([5, 6]), np.array([True, False])),
    )
    with pytest.raises(BadSample) as caught:
        make_encoder().encode(parsed(make_record("Q", "A")))
    assert caught.value.reason == Reason.NO_SUPERVISED_TOKEN


def test_other_store_of_images(make_encoder, make_record, images):
    sample = parsed(make_record("<image>Q", "A", image="inside a shard"))
    shard = {"inside a shard": Path(f"{images}/wide.png").read_bytes()}
    encoded = make_encoder().encode(sample, lambda name: io.BytesIO(shard[name]))
    assert len(encoded.tiles) == 4


def test_assets_that_do_not_suit(tmp_path, tokenizer_with, new_assets):
    with pytest.raises(ValueError, match="none"):
        load_nvila_assets(str(tmp_path / "none"))
    no_template = new_assets(tmp_path / "a", tokenizer_with(None))
    with pytest.raises(ValueError, match="has no chat template"):
        load_nvila_assets(str(no_template))
    no_pad = tokenizer_with()
    no_pad.pad_token = None
    with pytest.raises(ValueError, match="has no pad token"):
        load_nvila_assets(str(new_assets(tmp_path / "b", no_pad)))


def test_tokenizer_without_image_token(tmp_path, tokenizer_with, new_assets):
    folder = new_assets(tmp_path, tokenizer_with())
    for file in folder.glob("*.json"):
        if "token" in file.name:
            file.write_text(file.read_text().replace('"<image>"', '"<picture>"'))
    with pytest.raises(ValueError, match="has no <image> token"):
        load_nvila_assets(str(folder))


def test_template_that_refuses_a_conversation(
    make_encoder, make_record, tmp_path, tokenizer_with, new_assets
):
    template = tokenizer_with().chat_template
    refusing = "{% if messages[0]['content'] == 'no' %}{{ raise_exception('not so') }}{% endif %}"
    folder = new_assets(tmp_path, tokenizer_with(refusing + template))
    encoder = make_encoder(assets=str(folder))
    assert encoder.length(parsed(make_record("yes", "A"))) > 0
    with pytest.raises(BadSample, match="refuses the turns user, assistant: not so") as caught:
        encoder.encode(parsed(make_record("no", "A")))
    assert caught.value.reason == Reason.TEMPLATE_REFUSES


@pytest.mark.parametrize("name", ["seq_length", "max_tiles", "max_image_pixels"])
def test_configuration_below_one(name):
    with pytest.raises(ValueError, match=f"{name} is 0"):
        EncoderConfig(**{"assets": "", "seq_length": 8, name: 0})


def test_encoder_can_be_pickled_before_and_after_use(make_encoder, make_record):
    sample = parsed(make_record("<image>Q", "A", image="wide.png"))
    encoder = make_encoder()
    before = pickle.loads(pickle.dumps(encoder))
    expected = encoder.encode(sample)
    for copy in (before, pickle.loads(pickle.dumps(encoder))):
        assert isinstance(copy, NvilaEncoder)
        assert (copy.encode(sample).tokens == expected.tokens).all()


def test_tile_budget_makes_grids_smaller_before_questions_go(make_encoder, make_record):
    record = make_record("<image>\nQ", "A", "<image>\nR", "B", image=["wide.png", "wide.png"])
    assert len(make_encoder().encode(parsed(record)).tiles) == 8
    assert len(make_encoder(max_tiles_per_sample=7).encode(parsed(record)).tiles) == 6
    assert len(make_encoder(max_tiles_per_sample=2).encode(parsed(record)).tiles) == 2
    assert len(make_encoder(max_tiles_per_sample=1).encode(parsed(record)).tiles) == 1
    one = make_encoder().encode(parsed({**record, "max_tiles": 1}))
    assert len(one.tiles) == 2

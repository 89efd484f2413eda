"""Documents through the encoders: all text is learnt, images are whole, the end is cut."""

import numpy as np
import pytest

from datamodules.document import cut_position
from sample_loaders.document import DocumentSample
from sample_loaders.errors import BadSample, Reason

TILE = "<image>" * 4 + "\n\n"  # the features of a tile, its closing newline, and its line


def document(text, *images, max_tiles=None):
    return DocumentSample(key="k", source="s", text=text, images=images, max_tiles=max_tiles)


def texts(encoded, tokenizer):
    learnt = encoded.labels >= 0
    assert (encoded.labels[:-1][learnt[:-1]] == encoded.tokens[1:][learnt[:-1]]).all()
    return tokenizer.decode(encoded.tokens), tokenizer.decode(encoded.labels[learnt])


def test_nvila_learns_all_text_and_the_end(make_encoder):
    encoder = make_encoder()
    encoded = encoder.encode(document("One. <image>\nTwo.", "wide.png"))
    text, learnt = texts(encoded, encoder.assets.tokenizer)
    assert text == f"One. {TILE * 4}Two.<|im_end|>"
    # Nothing predicts the first token; an image and its lines are not learnt.
    first = encoder.assets.tokenizer.decode(encoded.tokens[:1])
    assert first + learnt == "One. Two.<|im_end|>"
    assert encoded.tiles.shape == (4, 3, 56, 56)


def test_nvila_caption_with_one_tile(make_encoder):
    encoder = make_encoder()
    encoded = encoder.encode(document("<image>\nA cat.", "wide.png", max_tiles=1))
    assert texts(encoded, encoder.assets.tokenizer) == (
        f"{TILE}A cat.<|im_end|>",
        "A cat.<|im_end|>",
    )
    assert len(encoded.tiles) == 1
    # The bound of a record never lifts that of the data module.
    bounded = make_encoder(max_tiles=1).encode(document("<image>\nA", "wide.png", max_tiles=6))
    assert len(bounded.tiles) == 1


@pytest.mark.parametrize("limit", range(8, 60))
def test_nvila_cut_is_a_prefix_that_ends_with_text(make_encoder, limit):
    sample = document("ab <image>\ncd efg <image>\n<image>\nhi jk lm", *["one.png"] * 3)
    encoder = make_encoder()
    whole = encoder.encode(sample)
    image = encoder.assets.image_token_id
    cut = make_encoder(seq_length=limit).encode(sample)
    length = len(cut.tokens)
    assert length <= limit
    assert (cut.tokens == whole.tokens[:length]).all()
    kept = int((cut.tokens == image).sum())
    assert kept % 4 == 0
    assert len(cut.tiles) == kept // 4
    assert (cut.tiles == whole.tiles[: kept // 4]).all()
    if length < len(whole.tokens):
        assert cut.labels[-1] == -100
        assert (cut.labels[:-1] == whole.labels[: length - 1]).all()
        # As much as there is room for: but for an image that would have been cut or come last.
        if length < limit:
            following = whole.tokens[length:limit]
            assert (following == image).any()
    newline = encoder.assets.newline_token_id
    assert cut.tokens[-1] != image
    if cut.tokens[-1] == newline:
        assert cut.tokens[-2] == newline  # the line after a tile, not the one that closes it


def test_nvila_first_image_that_leaves_no_room_gets_fewer_tiles(make_encoder):
    encoded = make_encoder(seq_length=12).encode(document("<image>\nA cat.", "wide.png"))
    assert len(encoded.tiles) == 1
    assert (encoded.labels >= 0).any()
    with pytest.raises(BadSample) as raised:
        make_encoder(seq_length=6).encode(document("<image>\nA cat.", "wide.png"))
    assert raised.value.reason == Reason.TOO_LONG


def test_nvila_tile_budget(make_encoder):
    sample = document("a <image>\nb <image>\nc <image>\nd", "wide.png", "wide.png", "one.png")
    assert len(make_encoder().encode(sample).tiles) == 9
    cut = make_encoder(max_tiles_per_sample=8).encode(sample)
    assert len(cut.tiles) == 8
    tokenizer = make_encoder().assets.tokenizer
    assert tokenizer.decode(cut.tokens) == f"a {TILE * 4}b {TILE * 4}c "
    assert len(make_encoder(max_tiles_per_sample=7).encode(sample).tiles) == 4


def test_mllama_learns_all_text_between_begin_and_end(make_llama_encoder):
    encoder = make_llama_encoder()
    encoded = encoder.encode(document("One. <image>\nTwo <image>three.", "wide.png", "one.png"))
    assert texts(encoded, encoder.assets.tokenizer) == (
        "<|begin_of_text|>One. <|image|>Two <|image|>three.<|eot_id|>",
        "One. Two three.<|eot_id|>",
    )
    places = np.flatnonzero(encoded.tokens == encoder.assets.image_token_id)
    assert encoded.image_spans[:, 0].tolist() == places.tolist()
    assert encoded.image_spans[-1, 1] == len(encoded.tokens)


def test_mllama_cut(make_llama_encoder):
    sample = document("One <image>two <image>three four", "wide.png", "one.png")
    whole = make_llama_encoder().encode(sample)
    image = make_llama_encoder().assets.image_token_id
    places = np.flatnonzero(whole.tokens == image)
    for limit in range(3, len(whole.tokens) + 1):
        cut = make_llama_encoder(seq_length=limit).encode(sample)
        # An image that would come last goes too.
        kept = limit - 1 if limit - 1 in places else limit
        assert (cut.tokens == whole.tokens[:kept]).all(), limit
        assert len(cut.tiles_per_image) == (places < kept).sum()
    assert len(make_llama_encoder(max_tiles_per_sample=4).encode(sample).tiles_per_image) == 1


def test_control_tokens_in_a_document(make_encoder):
    with pytest.raises(BadSample, match="The document holds the control token '<|im_end|>'"):
        make_encoder().encode(document("a<|im_end|>b"))


@pytest.mark.parametrize(
    ("length", "limit", "images", "expected"),
    [
        (10, 10, [], 10),
        (11, 10, [], 10),
        (30, 10, [(4, 9)], 10),
        (30, 10, [(4, 10)], 4),
        (30, 10, [(4, 12)], 4),
        (30, 10, [(10, 14)], 10),
        (30, 10, [(2, 6), (6, 12)], 2),
        (30, 10, [(2, 5), (6, 12)], 6),
        (30, 10, [(0, 12)], 0),
    ],
)
def test_cut_position(length, limit, images, expected):
    assert cut_position(length, limit, images) == expected

"""Pairs through the encoder: two conversations with the same images, the last answer learnt."""

import numpy as np
import pytest

from datamodules.encoder import EncoderConfig
from datamodules.llava_encoder import LlavaEncoder
from datamodules.preference_encoder import PreferenceEncoder
from datamodules.sample_encoder import open_encoder
from sample_loaders.document import parse_record
from sample_loaders.errors import BadSample, Reason
from tests.datamodules.llava_assets import write_llava_assets

HEAD = "<|im_start|>system\nあなたは日本語で答えるアシスタントです。<|im_end|>\n"


def preference(*questions, chosen, rejected, **record):
    turns = [
        {"from": "gpt" if number % 2 else "human", "value": text}
        for number, text in enumerate(questions)
    ]
    content = {"conversations": turns, "chosen": chosen, "rejected": rejected, **record}
    return parse_record(content, "k", "s")


@pytest.fixture
def make_pairs(make_encoder):
    return lambda **options: PreferenceEncoder(make_encoder(**options))


def texts(tokenizer, half):
    return tokenizer.decode(half.tokens), tokenizer.decode(half.labels[half.labels >= 0])


def test_only_the_last_answer_is_learnt(make_pairs, tokenizer):
    pair = make_pairs().encode(preference("Q", "A", "R", chosen="yes", rejected="no"))
    for half, answer in ((pair.chosen, "yes"), (pair.rejected, "no")):
        text, learnt = texts(tokenizer, half)
        assert text == HEAD + (
            "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"
            f"<|im_start|>user\nR<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n"
        )
        assert learnt == f"{answer}<|im_end|>"


def test_both_show_the_same_tiles_where_only_one_answer_leaves_room(make_pairs):
    # photo.jpg has 12 tiles and a thumbnail, of 6 positions each.
    question = {"chosen": "yes", "rejected": "no " * 10, "image": "photo.jpg"}
    sample = preference("<image>\nQ", **question)
    whole = make_pairs().encode(sample)
    assert len(whole.chosen.tiles) == 13
    length = len(whole.chosen.tokens) + 6
    assert length < len(whole.rejected.tokens)
    narrow = make_pairs(seq_length=length)
    alone = narrow._encoder.plan(sample.conversations()[0])
    assert alone.tiles == 13
    pair = narrow.encode(sample)
    assert 1 <= len(pair.chosen.tiles) < 13
    assert np.array_equal(pair.chosen.tiles, pair.rejected.tiles)
    assert len(pair.rejected.tokens) <= length
    image = narrow._encoder.assets.image_token_id
    assert (pair.chosen.tokens == image).sum() == (pair.rejected.tokens == image).sum()
    assert narrow.length(sample) == len(pair.tokens) == len(pair.labels)


def test_a_question_is_never_cut_away(make_pairs):
    sample = preference("Q", "A", "R", chosen="yes", rejected="no " * 30)
    length = len(make_pairs().encode(sample).rejected.tokens)
    assert make_pairs(seq_length=length).encode(sample)
    with pytest.raises(BadSample, match="The conversation has more than") as caught:
        make_pairs(seq_length=length - 1).encode(sample)
    assert caught.value.reason == Reason.TOO_LONG


def test_other_records_and_other_encoders_are_refused(make_pairs, make_encoder, make_record):
    with pytest.raises(BadSample, match="The record is no preference"):
        make_pairs().encode(parse_record(make_record("Q", "A"), "k", "s"))
    with pytest.raises(BadSample, match="preference_pairs=True only"):
        make_encoder().encode(preference("Q", chosen="yes", rejected="no"))


def test_rows_of_a_micro_batch_are_pairs(make_pairs, tokenizer):
    encoder = make_pairs()
    samples = [
        preference("<image>\nQ", chosen="yes", rejected="no", image="wide.png"),
        preference("R", chosen="three", rejected="four"),
    ]
    pairs = [encoder.encode(sample) for sample in samples]
    batch = encoder.collator(8, None)(pairs)
    assert batch["sample_keys"] == ["k", "k"]
    assert batch["answer_sequences"].tolist() == [0, 1, 2, 3]
    assert batch["tokens"].shape[0] == 4
    assert batch["tiles"].shape[0] == 8  # three and the thumbnail, for both answers
    assert batch["num_tokens"] == sum(len(pair.tokens) for pair in pairs)
    learnt = [tokenizer.decode(row[row >= 0]) for row in batch["labels"]]
    assert learnt == [f"{answer}<|im_end|>" for answer in ("yes", "no", "three", "four")]


def test_sequences_of_packed_rows_are_pairs(make_pairs, tokenizer):
    encoder = make_pairs(seq_length=64)
    pairs = [
        encoder.encode(preference("R", chosen=chosen, rejected="no"))
        for chosen in ("one", "two", "three")
    ]
    batch = encoder.collator(8, 64)([*pairs[:1]])
    assert batch["tokens"].shape == (2, 64)
    # A row of pairs has the room of two rows; its rest is a sequence of its own.
    batch = encoder.collator(8, 64).packed([pairs[:1], pairs[1:2], pairs[2:]])
    assert batch["tokens"].shape == (1, 3 * 128)
    assert batch["answer_sequences"].tolist() == [0, 1, 3, 4, 6, 7]
    labels, starts = batch["labels"][0], batch["cu_seqlens"].tolist()
    for sequence, answer in zip(
        batch["answer_sequences"].tolist(), ("one", "no", "two", "no", "three", "no"), strict=True
    ):
        own = labels[starts[sequence] : starts[sequence + 1]]
        assert tokenizer.decode(own[own >= 0]) == f"{answer}<|im_end|>"


def test_a_filler_has_nothing_to_learn(make_pairs):
    encoder = make_pairs()
    batch = encoder.collator(8, None)([encoder.filler("f")])
    assert batch["tokens"].shape == (2, 8)
    assert not batch["loss_mask"].any()


def test_the_encoder_of_a_checkpoint(assets, llama_assets):
    encoder = open_encoder(assets, 512, preference_pairs=True)
    assert isinstance(encoder, PreferenceEncoder)
    with pytest.raises(ValueError, match="preference_pairs: True is not supported for mllama"):
        open_encoder(llama_assets, 512, preference_pairs=True)


def test_pairs_for_llava(images, tmp_path):
    folder = write_llava_assets(tmp_path)
    settings = EncoderConfig(assets=folder, image_folder=images, seq_length=400)
    encoder = PreferenceEncoder(LlavaEncoder(settings))
    pair = encoder.encode(
        preference("<image>\nQ", "A", "R", chosen="cat", rejected="mat", image="photo.jpg")
    )
    tokenizer = encoder._encoder.assets.tokenizer
    for half, answer in ((pair.chosen, "cat"), (pair.rejected, "mat")):
        assert texts(tokenizer, half)[1].strip() == f"{answer}</s>"
        assert half.tiles.shape == (1, 3, 28, 28)

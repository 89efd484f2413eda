import numpy as np
import pytest
import torch

from datamodules.image_slot_collate import ImageSlotCollator, ImageSlotSample
from datamodules.mllama_collate import MllamaCollator, MllamaSample


def sample(key, tokens, labels, tiles=0):
    return ImageSlotSample(
        key=key,
        tokens=np.array(tokens, dtype=np.int64),
        labels=np.array(labels, dtype=np.int64),
        tiles=np.full((tiles, 3, 4, 4), len(key), dtype=np.uint8),
    )


def test_contract():
    batch = ImageSlotCollator(pad_token_id=9, pad_to_multiple_of=4)(
        [
            sample("a", [1, 2, 3, 4, 5], [-100, 3, -100, 5, -100], 2),
            sample("bb", [6, 7], [7, -100], 1),
        ]
    )
    assert batch["tokens"].tolist() == [[1, 2, 3, 4, 5, 9, 9, 9], [6, 7, 9, 9, 9, 9, 9, 9]]
    assert batch["labels"].tolist() == [
        [-100, 3, -100, 5, -100, -100, -100, -100],
        [7, -100, -100, -100, -100, -100, -100, -100],
    ]
    assert batch["loss_mask"].tolist() == [[0, 1, 0, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 5, 6, 7]] * 2
    assert batch["tiles"][:, 0, 0, 0].tolist() == [1, 1, 2]
    assert batch["sample_keys"] == ["a", "bb"]
    assert batch["num_tokens"] == 7
    kinds = {name: value.dtype for name, value in batch.items() if hasattr(value, "dtype")}
    assert kinds == {
        "tokens": torch.int64,
        "labels": torch.int64,
        "position_ids": torch.int64,
        "loss_mask": torch.float32,
        "tiles": torch.uint8,
    }


@pytest.mark.parametrize(("multiple", "length"), [(1, 5), (2, 6), (8, 8), (5, 5)])
def test_row_length_is_rounded_up(multiple, length):
    batch = ImageSlotCollator(pad_token_id=0, pad_to_multiple_of=multiple)(
        [sample("a", [1] * 5, [-100] * 5)]
    )
    assert batch["tokens"].shape == (1, length)


def test_fixed_length():
    collator = ImageSlotCollator(pad_token_id=0, fixed_length=16)
    assert collator([sample("a", [1] * 5, [-100] * 5)])["labels"].shape == (1, 16)
    with pytest.raises(AssertionError):
        collator([sample("a", [1] * 17, [-100] * 17)])


def test_batch_without_tiles():
    assert ImageSlotCollator(pad_token_id=0)([sample("a", [1], [-100])])["tiles"].shape == (
        0,
        3,
        4,
        4,
    )


def mllama_sample(key, length, spans=(), tiles=()):
    """A sample of `length` tokens whose images have these spans and numbers of tiles."""
    return MllamaSample(
        key=key,
        tokens=np.arange(length, dtype=np.int64),
        labels=np.full(length, -100, dtype=np.int64),
        tiles=np.concatenate(
            [np.zeros((0, 3, 4, 4), dtype=np.uint8)]
            + [
                np.full((count, 3, 4, 4), start, dtype=np.uint8)
                for count, (start, _) in zip(tiles, spans, strict=True)
            ]
        ),
        tiles_per_image=np.array(tiles, dtype=np.int64),
        aspect_ratio_ids=np.array([count + 4 for count in tiles], dtype=np.int64),
        image_spans=np.array(spans, dtype=np.int64).reshape(-1, 2),
    )


def test_mllama_contract():
    batch = MllamaCollator(pad_token_id=9, pad_to_multiple_of=4)(
        [
            mllama_sample("two", 6, [(1, 4), (4, 6)], [4, 1]),
            mllama_sample("text", 3),
            mllama_sample("one", 2, [(0, 2)], [2]),
        ]
    )
    assert batch["tokens"].tolist() == [
        [0, 1, 2, 3, 4, 5, 9, 9],
        [0, 1, 2, 9, 9, 9, 9, 9],
        [0, 1, 9, 9, 9, 9, 9, 9],
    ]
    assert batch["images_per_sample"].tolist() == [2, 0, 1]
    assert batch["image_spans"].tolist() == [[1, 4], [4, 6], [0, 2]]
    assert batch["tiles_per_image"].tolist() == [4, 1, 2]
    assert batch["aspect_ratio_ids"].tolist() == [8, 5, 6]
    assert batch["tiles"][:, 2, 3, 3].tolist() == [1, 1, 1, 1, 4, 0, 0]
    assert batch["sample_keys"] == ["two", "text", "one"]
    kinds = {name: value.dtype for name, value in batch.items() if hasattr(value, "dtype")}
    assert kinds.pop("tiles") == torch.uint8
    assert kinds.pop("loss_mask") == torch.float32
    assert set(kinds.values()) == {torch.int64}
    assert len(kinds) == 7


def test_mllama_batch_without_images():
    samples = [mllama_sample("a", 3), mllama_sample("b", 1)]
    batch = MllamaCollator(pad_token_id=0, fixed_length=8)(samples)
    shapes = {name: tuple(value.shape) for name, value in batch.items() if hasattr(value, "shape")}
    assert shapes == {
        "tokens": (2, 8),
        "position_ids": (2, 8),
        "labels": (2, 8),
        "loss_mask": (2, 8),
        "tiles": (0, 3, 4, 4),
        "tiles_per_image": (0,),
        "aspect_ratio_ids": (0,),
        "image_spans": (0, 2),
        "images_per_sample": (2,),
    }
    assert batch["tiles"].dtype == torch.uint8
    assert batch["images_per_sample"].tolist() == [0, 0]
    assert batch["image_spans"].dtype == torch.int64


def test_packed_rows():
    rows = [
        [sample("a", [1, 2, 3], [2, -100, -100], 2), sample("bb", [4, 5], [5, -100], 1)],
        [sample("ccc", [6, 7, 8, 9], [7, 8, 9, -100])],
    ]
    batch = ImageSlotCollator(pad_token_id=0, pad_to_multiple_of=4).packed(rows)
    # The longer row has 5 places, rounded up to 8; what is left of each is a sequence of its own.
    assert batch["tokens"].tolist() == [[1, 2, 3, 4, 5, 0, 0, 0, 6, 7, 8, 9, 0, 0, 0, 0]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0, 0, 0, 0, 1, 2, 3, 0, 0, 0, 0]]
    ignored = -100
    assert batch["labels"].tolist() == [
        [2, ignored, ignored, 5, *[ignored] * 4, 7, 8, 9, *[ignored] * 5]
    ]
    assert batch["loss_mask"].tolist() == [[1, 0, 0, 1, 0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0]]
    assert batch["cu_seqlens"].tolist() == [0, 3, 5, 8, 12, 16]
    assert batch["cu_seqlens"].dtype == torch.int32
    assert batch["max_seqlen"] == 4
    assert batch["tiles"][:, 0, 0, 0].tolist() == [1, 1, 2]
    assert batch["sample_keys"] == ["a", "bb", "ccc"]


def test_packed_row_that_is_full_has_no_rest():
    batch = ImageSlotCollator(pad_token_id=0, fixed_length=8).packed(
        [[sample("a", [1] * 5, [-100] * 5), sample("b", [2] * 3, [-100] * 3)]]
    )
    assert batch["cu_seqlens"].tolist() == [0, 5, 8]
    assert batch["tokens"].shape == (1, 8)


def test_packed_mllama_rows():
    rows = [
        [mllama_sample("two", 6, [(1, 4), (4, 6)], [4, 1]), mllama_sample("text", 3)],
        [mllama_sample("one", 2, [(0, 2)], [2]), mllama_sample("more", 5, [(2, 5)], [1])],
    ]
    batch = MllamaCollator(pad_token_id=9, pad_to_multiple_of=4).packed(rows)
    assert batch["cu_seqlens"].tolist() == [0, 6, 9, 12, 14, 19, 24]
    assert batch["images_per_sample"].tolist() == [2, 0, 0, 1, 1, 0]
    assert batch["image_spans"].tolist() == [[1, 4], [4, 6], [12, 14], [16, 19]]
    assert batch["tiles_per_image"].tolist() == [4, 1, 2, 1]
    assert batch["tiles"][:, 2, 3, 3].tolist() == [1, 1, 1, 1, 4, 0, 0, 2]
    assert batch["image_spans"].dtype == torch.int64

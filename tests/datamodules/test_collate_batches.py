import numpy as np
import pytest
import torch

from datamodules.collate import Collator
from datamodules.encoder import EncodedSample


def sample(key, tokens, labels, tiles=0):
    return EncodedSample(
        key=key,
        tokens=np.array(tokens, dtype=np.int64),
        labels=np.array(labels, dtype=np.int64),
        tiles=np.full((tiles, 3, 4, 4), len(key), dtype=np.uint8),
    )


def test_contract():
    batch = Collator(pad_token_id=9, pad_to_multiple_of=4)(
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
    kinds = {name: batch[name].dtype for name in batch if name != "sample_keys"}
    assert kinds == {
        "tokens": torch.int64,
        "labels": torch.int64,
        "position_ids": torch.int64,
        "loss_mask": torch.float32,
        "tiles": torch.uint8,
    }


@pytest.mark.parametrize(("multiple", "length"), [(1, 5), (2, 6), (8, 8), (5, 5)])
def test_row_length_is_rounded_up(multiple, length):
    batch = Collator(pad_token_id=0, pad_to_multiple_of=multiple)(
        [sample("a", [1] * 5, [-100] * 5)]
    )
    assert batch["tokens"].shape == (1, length)


def test_fixed_length():
    collator = Collator(pad_token_id=0, fixed_length=16)
    assert collator([sample("a", [1] * 5, [-100] * 5)])["labels"].shape == (1, 16)
    with pytest.raises(AssertionError):
        collator([sample("a", [1] * 17, [-100] * 17)])


def test_batch_without_tiles():
    assert Collator(pad_token_id=0)([sample("a", [1], [-100])])["tiles"].shape == (0, 3, 4, 4)

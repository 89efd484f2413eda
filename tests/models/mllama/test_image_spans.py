import itertools

import numpy as np
import pytest
from transformers.models.mllama.processing_mllama import (
    convert_sparse_cross_attention_mask_to_dense,
    get_cross_attention_token_mask,
)

from models.mllama.image_spans import image_spans

IMAGE = 9


@pytest.mark.parametrize(
    ("ids", "spans"),
    [
        ([1, 2, 3], []),
        ([], []),
        ([IMAGE], [(0, 1)]),
        ([1, IMAGE, 2, 3], [(1, 4)]),
        ([1, IMAGE, 2, 3, IMAGE, 4], [(1, 4), (4, 6)]),
        ([IMAGE, IMAGE, 1, 2], [(0, 4), (1, 4)]),
        ([1, IMAGE, IMAGE, IMAGE, 2, IMAGE, 3], [(1, 5), (2, 5), (3, 5), (5, 7)]),
        ([1, IMAGE, 2, IMAGE, IMAGE], [(1, 3), (3, 5), (4, 5)]),
        ([1, IMAGE, 2, IMAGE], [(1, 3), (3, 4)]),
    ],
)
def test_spans(ids, spans):
    found = image_spans(np.array(ids, dtype=np.int64), IMAGE)
    assert found.shape == (len(spans), 2)
    assert found.dtype == np.int64
    assert found.tolist() == [list(span) for span in spans]


def test_every_short_text_gives_the_mask_of_transformers():
    for length in range(1, 10):
        for ids in itertools.product((1, IMAGE), repeat=length):
            sparse = get_cross_attention_token_mask(list(ids), IMAGE)
            found = image_spans(np.array(ids), IMAGE)
            assert len(found) == len(sparse)
            if not sparse:
                continue
            expected = convert_sparse_cross_attention_mask_to_dense(
                [sparse], [[1] * len(sparse)], max_num_tiles=1, length=length
            )
            mask = np.zeros_like(expected)
            for image, (start, end) in enumerate(found):
                mask[0, start:end, image] = 1
            assert (mask == expected).all(), ids
            assert ((found >= 0) & (found <= length)).all()

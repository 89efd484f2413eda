"""Which tile each position of the text looks at."""

import pytest
import torch

pytestmark = pytest.mark.usefixtures("nemo")


def codes(spans, tiles, images, length=6, slots=2):
    from models.mllama.visibility import tile_visibility

    return tile_visibility(
        torch.tensor(spans), torch.tensor(tiles), torch.tensor(images), length, slots
    ).tolist()


def test_text_before_the_image_sees_every_slot_and_is_marked_so():
    # One image of one tile in two slots, seen from position 2 to 4; what follows is padding.
    assert codes([[2, 4]], [1], [1]) == [
        [[2, 2], [2, 2], [1, 0], [1, 0], [2, 2], [2, 2]],
    ]


def test_between_two_images_only_the_nearer_one_is_seen():
    assert codes([[1, 3], [3, 6]], [2, 1], [2]) == [
        [[2, 2, 2, 2], *[[1, 1, 0, 0]] * 2, *[[0, 0, 1, 0]] * 3],
    ]


def test_neighbouring_images_are_seen_together():
    assert codes([[0, 6], [1, 6]], [1, 1], [2])[0][0] == [1, 0, 0, 0]
    assert codes([[0, 6], [1, 6]], [1, 1], [2])[0][1] == [1, 0, 1, 0]


def test_samples_keep_to_their_own_images():
    found = codes([[0, 6], [0, 6], [2, 6]], [1, 1, 2], [2, 0, 1])
    assert found[0] == [[1, 0, 1, 0]] * 6
    assert found[1] == [[0, 0, 0, 0]] * 6  # text only: nothing to see
    # The last two slots are another sample's second image.
    assert found[2] == [[2, 2, 0, 0]] * 2 + [[1, 1, 0, 0]] * 4

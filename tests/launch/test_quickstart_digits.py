import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from launch.quickstart.digits import digit_files, write_digits
from sample_loaders.conversation import parse_llava

PER_LENGTH, VALIDATION_STRIPS = 3, 5
SINGLE_NAME = re.compile(r"(train|val)_(\d{4})(?:_([0-3]))?\.jpg")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp("digits"), PER_LENGTH, VALIDATION_STRIPS)


@pytest.fixture(scope="module")
def digits():
    """The labels, and the images resized here: uint8[1797, 56, 56]."""
    data = load_digits()
    images = [Image.fromarray((image * 255 / 16).astype(np.uint8)) for image in data.images]
    resized = [np.asarray(image.resize((56, 56), Image.Resampling.BICUBIC)) for image in images]
    return data.target, np.stack(resized)


def records(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def answer(record):
    return record["conversations"][1]["value"]


def pixels(files, record):
    with Image.open(files.images / record["image"]) as image:
        return np.asarray(image)


def single_index(record):
    return int(SINGLE_NAME.fullmatch(record["image"])[2])


def indices(path):
    return {single_index(record) for record in records(path)}


def find(tiles, piece, reach):
    """The indices of the digits that a piece shows, moved by at most `reach` pixels."""
    found = set()
    for down in range(-reach, reach + 1):
        for right in range(-reach, reach + 1):
            # What lies 4 pixels or more from the border is never cut off.
            moved = tiles[:, 4 - down : 52 - down, 4 - right : 52 - right]
            middle = (moved[:, 24] == piece[28, 4:52]).all(axis=1).nonzero()[0]
            same = (moved[middle] == piece[4:52, 4:52]).all(axis=(1, 2))
            found.update(middle[same].tolist())
    return found


def test_no_digit_is_in_both_training_and_validation(files):
    training, held_out = indices(files.train_singles), indices(files.validation_singles)
    assert len(held_out) == 360
    assert not training & held_out
    assert training | held_out == set(range(1797))


def test_no_picture_is_in_both_training_and_validation(files, digits):
    _, tiles = digits

    def nearest(record):
        # JPEG moves pixels a little: a file shows the digit that it is closest to.
        distance = np.abs(tiles.astype(np.int16) - pixels(files, record)).mean(axis=(1, 2))
        assert distance.min() < 3
        return int(distance.argmin())

    unshifted = [one for one in records(files.train_singles) if one["image"].count("_") == 1]
    assert len(unshifted) == 1437
    shown = {
        part: {pixels(files, record).tobytes() for record in chosen}
        for part, chosen in (("train", unshifted), ("val", records(files.validation_singles)))
    }
    assert (len(shown["train"]), len(shown["val"])) == (1437, 360)
    assert not shown["train"] & shown["val"]
    # The names tell the truth, here for some of each.
    for record in unshifted[::60] + records(files.validation_singles)[::15]:
        assert nearest(record) == single_index(record)


def test_shifted_training_digits_are_their_digit_moved(files, digits):
    _, tiles = digits
    shifted = [one for one in records(files.train_singles) if one["image"].count("_") == 2]
    assert Counter(map(single_index, shifted)) == dict.fromkeys(indices(files.train_singles), 4)
    moves = set()
    for record in shifted[:40]:
        picture = pixels(files, record).astype(np.int16)
        padded = np.pad(tiles[single_index(record)], 4).astype(np.int16)
        distances = {
            (down, right): np.abs(
                padded[4 - down : 60 - down, 4 - right : 60 - right] - picture
            ).mean()
            for down in range(-4, 5)
            for right in range(-4, 5)
        }
        best = min(distances, key=distances.__getitem__)
        assert distances[best] < 3
        moves.add(best)
    assert len(moves) > 10


def test_single_answers_are_the_labels(files, digits):
    labels, _ = digits
    for path in (files.train_singles, files.validation_singles):
        for record in records(path):
            assert answer(record) == str(labels[single_index(record)])


@pytest.mark.parametrize(
    ("part", "counts", "reach"),
    [
        ("train", {length: PER_LENGTH for length in (2, 3, 4)}, 4),
        ("validation", {3: VALIDATION_STRIPS}, 0),
    ],
)
def test_strips_read_left_to_right_and_keep_the_split(files, digits, part, counts, reach):
    labels, tiles = digits
    allowed = indices(getattr(files, f"{part}_singles"))
    lengths = Counter()
    for record in records(getattr(files, f"{part}_strips")):
        strip = pixels(files, record)
        words = answer(record).split(" ")
        assert strip.shape == (56, 56 * len(words))
        lengths[len(words)] += 1
        for word, piece in zip(words, np.split(strip, len(words), axis=1), strict=True):
            (index,) = find(tiles, piece, reach)
            assert index in allowed
            assert word == str(labels[index])
    assert lengths == counts


def test_every_record_can_be_read_and_every_image_is_used_once(files):
    paths = (
        files.train_singles,
        files.train_strips,
        files.validation_singles,
        files.validation_strips,
    )
    assert files == digit_files(files.images.parent)
    names = []
    for path in paths:
        for record in records(path):
            sample = parse_llava(record, record["id"], path.name)
            assert [turn.role for turn in sample.turns] == ["user", "assistant"]
            assert sample.turns[0].text.startswith("<image>\n")
            names += sample.images
    assert len(names) == len(set(names)) == 1437 * 5 + 360 + 3 * PER_LENGTH + VALIDATION_STRIPS
    assert set(names) == {file.name for file in files.images.iterdir()}


def test_singles_are_jpeg_of_one_tile_and_strips_png(files):
    for file in files.images.iterdir():
        with Image.open(file) as image:
            strip = "strip" in file.name
            assert image.format == ("PNG" if strip else "JPEG")
            assert Path(file).suffix == (".png" if strip else ".jpg")
            assert strip or image.size == (56, 56)

import numpy as np
import pytest

from preparation.placement import (
    Placement,
    in_text_order,
    most_similar_first,
    place_by_similarity,
    similarity_rows,
    without_trailing,
    write_document,
)


def test_rows_of_a_matrix():
    rows = similarity_rows([[0.1, 0.2], [0.3, 0.4]], images=2, sentences=2)
    assert [row.tolist() for row in rows] == [[0.1, 0.2], [0.3, 0.4]]
    rows = similarity_rows(np.array([[1, 2]], dtype=np.float16), images=3, sentences=2)
    assert rows[0].tolist() == [1, 2]
    assert rows[1:] == [None, None]


@pytest.mark.parametrize(
    "matrix",
    [
        None, "text", {"a": 1}, [], [[0.1], [0.1]], [[0.1, 0.2, 0.3]], [[0.1, None]], [["a", "b"]],
        [[float("nan"), 1.0]], [[float("inf"), 1.0]], [3], [[[1, 2]]],
    ],
)  # fmt: skip
def test_matrices_that_say_nothing(matrix):
    assert similarity_rows(matrix, images=1, sentences=2) == [None]


def test_an_image_goes_to_the_first_best_sentence_with_text():
    row = np.array([0.9, 0.1, 0.5, 0.5])
    assert place_by_similarity(4, row, [" ", "a", "b", "c"]) == Placement(
        image=4, sentence=2, similarity=0.5
    )
    assert place_by_similarity(4, row, ["", " ", "\n", ""]) is None


def test_orders():
    places = [
        Placement(image=0, sentence=2, similarity=0.1),
        Placement(image=1, sentence=0, offset=3),
        Placement(image=2, sentence=0, similarity=0.7),
        Placement(image=3, sentence=2, similarity=0.7),
    ]
    assert [place.image for place in most_similar_first(places)] == [2, 3, 0, 1]
    assert [place.image for place in in_text_order(places)] == [2, 1, 0, 3]


def test_images_behind_the_text_are_left_out():
    sentences = ["a", "bc", " "]
    places = [
        Placement(image=0, sentence=0, offset=1),
        Placement(image=1, sentence=1, offset=1),
        Placement(image=2, sentence=1, offset=2),
        Placement(image=3, sentence=2),
    ]
    assert [place.image for place in without_trailing(places, sentences)] == [0, 1]


def test_text_with_placeholders():
    sentences = ["One.", "Two.", "", "Three."]
    places = [
        Placement(image=0, sentence=0),
        Placement(image=1, sentence=1),
        Placement(image=2, sentence=1),
        Placement(image=3, sentence=3, offset=2),
    ]
    assert write_document(sentences, places) == (
        "<image>\nOne.<image>\n<image>\nTwo. Th<image>\nree."
    )
    assert write_document(["a ", " b"], [Placement(image=0, sentence=1)]) == "a<image>\nb"
    assert write_document(["a", "b"], []) == "a b"


def test_the_text_is_the_published_one():
    """Follows the published lines: marks before sentences, one space between, none at marks."""
    random = np.random.default_rng(0)
    for _ in range(50):
        sentences = [f"s{number}" for number in range(random.integers(1, 6))]
        indices = sorted(random.integers(0, len(sentences), random.integers(0, 5)).tolist())
        expected = list(sentences)
        for index in indices:
            expected[index] = f"<image>\n{expected[index]}"
        published = " ".join(expected).replace("<image> ", "<image>").replace(" <image>", "<image>")
        places = [Placement(image=n, sentence=index) for n, index in enumerate(indices)]
        assert write_document(sentences, places) == published

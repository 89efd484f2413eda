"""The quickstart's data: scikit-learn's handwritten digits, alone and as strips, as LLaVA JSONL."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from launch.quickstart.parents import QUESTION_SINGLE, QUESTION_STRIP

TILE = 56
HELD_OUT = 360
"""Digit images that no training file shows; scikit-learn has 1,797."""

SHIFTED_VARIANTS = 4
MAX_SHIFT = 4
"""Pixels by which a training digit may be moved, of a tile's 56."""


@dataclass(frozen=True, kw_only=True)
class DigitFiles:
    """Where the data lie."""

    images: Path
    train_singles: Path
    train_strips: Path
    validation_singles: Path
    validation_strips: Path
    """Strips of three digits."""


def digit_files(folder: Path) -> DigitFiles:
    """Return the paths below a folder."""
    return DigitFiles(
        images=folder / "images",
        train_singles=folder / "train_singles.jsonl",
        train_strips=folder / "train_strips.jsonl",
        validation_singles=folder / "validation_singles.jsonl",
        validation_strips=folder / "validation_strips.jsonl",
    )


def write_digits(
    folder: Path, strips_per_length: int = 1000, validation_strips: int = 200, seed: int = 0
) -> DigitFiles:
    """Write images and JSONL files; no digit image is in both training and validation.

    Single digits are JPEG files of one tile, strips PNG files of two to four tiles side by side, so
    dynamic tiling cuts them into tiles and a thumbnail.

    Args:
        folder: where to write.
        strips_per_length: training strips of 2, of 3 and of 4 digits.
        validation_strips: held-out strips of 3 digits.
        seed: of the split, the shifts and the strips.
    """
    files = digit_files(folder)
    files.images.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    tiles, labels = _load_tiles()
    order = random.permutation(len(tiles))
    held_out, training = order[:HELD_OUT], order[HELD_OUT:]
    _write(files.train_singles, _training_singles(files.images, tiles, labels, training, random))
    _write(
        files.train_strips,
        (
            record
            for length in (2, 3, 4)
            for record in _strips(
                files.images, "train", tiles, labels, training, length, strips_per_length, random
            )
        ),
    )
    _write(files.validation_singles, _singles(files.images, "val", tiles, labels, held_out))
    _write(
        files.validation_strips,
        _strips(files.images, "val", tiles, labels, held_out, 3, validation_strips, random),
    )
    return files


def _load_tiles() -> tuple[np.ndarray, np.ndarray]:
    """Return uint8[1797, 56, 56] (white on black) and the digits int[1797]."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    small = np.clip(digits.images * (255.0 / 16.0), 0, 255).astype(np.uint8)
    tiles = [
        np.asarray(Image.fromarray(image).resize((TILE, TILE), Image.Resampling.BICUBIC))
        for image in small
    ]
    return np.stack(tiles), digits.target


def _shift(tile: np.ndarray, down: int, right: int) -> np.ndarray:
    moved = np.zeros_like(tile)
    source = tile[max(-down, 0) : TILE - max(down, 0), max(-right, 0) : TILE - max(right, 0)]
    moved[
        max(down, 0) : max(down, 0) + source.shape[0],
        max(right, 0) : max(right, 0) + source.shape[1],
    ] = source
    return moved


def _augmented(tile: np.ndarray, random: np.random.Generator) -> np.ndarray:
    down, right = random.integers(-MAX_SHIFT, MAX_SHIFT + 1, 2)
    return _shift(tile, int(down), int(right))


def _training_singles(
    images: Path,
    tiles: np.ndarray,
    labels: np.ndarray,
    chosen: np.ndarray,
    random: np.random.Generator,
) -> Iterator[dict]:
    yield from _singles(images, "train", tiles, labels, chosen)
    for index in chosen:
        for variant in range(SHIFTED_VARIANTS):
            name = f"train_{index:04d}_{variant}.jpg"
            yield _single(images, name, _augmented(tiles[index], random), labels[index])


def _singles(
    images: Path, part: str, tiles: np.ndarray, labels: np.ndarray, chosen: np.ndarray
) -> Iterator[dict]:
    for index in chosen:
        yield _single(images, f"{part}_{index:04d}.jpg", tiles[index], labels[index])


def _single(images: Path, name: str, tile: np.ndarray, label: int) -> dict:
    Image.fromarray(tile).save(images / name, quality=95)
    return _record(name, QUESTION_SINGLE, str(label))


def _strips(
    images: Path,
    part: str,
    tiles: np.ndarray,
    labels: np.ndarray,
    chosen: np.ndarray,
    length: int,
    count: int,
    random: np.random.Generator,
) -> Iterator[dict]:
    for number in range(count):
        members = random.choice(chosen, length, replace=False)
        parts = [
            _augmented(tiles[index], random) if part == "train" else tiles[index]
            for index in members
        ]
        name = f"{part}_strip{length}_{number:04d}.png"
        Image.fromarray(np.concatenate(parts, axis=1)).save(images / name)
        yield _record(name, QUESTION_STRIP, " ".join(str(labels[index]) for index in members))


def _record(name: str, question: str, answer: str) -> dict:
    return {
        "id": Path(name).stem,
        "image": name,
        "conversations": [
            {"from": "human", "value": f"<image>\n{question}"},
            {"from": "gpt", "value": answer},
        ],
    }


def _write(path: Path, records: Iterator[dict]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")

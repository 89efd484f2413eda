"""STAIR Captions: Japanese captions of COCO's images, five for each.

By github.com/STAIR-Lab-CIT/STAIR-captions the files are as COCO's: one JSON object with `images`
(`id`, `file_name`) and `annotations` (`id`, `image_id`, `caption`, `tokenized_caption`). Every
caption is a sample of its own, as the 414 k samples of Heron-NVILA show: COCO's 82,783 training
images have five each. Images are looked for by their names of 2014, in the image folder or in
`train2014` and `val2014` in it, and then by those of 2017.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preparation.formats.captions import caption_sample
from preparation.formats.files import find_files, name_in_source, own_folder
from preparation.formats.images import loose_size_bytes, read_loose
from preparation.formats.rows import Refusal, Row, RowReader
from preparation.reasons import RejectionReason
from preparation.source import Piece, RawSample, Reader, ReaderOptions

_PIECE_CAPTIONS = 2_000
_IMAGES_MEASURED = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class _Caption:
    """One annotation, with the names that its image may have."""

    identity: Any
    text: Any
    image_id: Any
    names: tuple[str, ...]


def open_stair_captions(source: Path, options: ReaderOptions) -> Reader:
    """Opens a JSON file, or a folder of them.

    Raises:
        ValueError: A file is not of COCO's form.
    """
    files = find_files(source, (".json",))
    if not files:
        raise ValueError(f"The source {source} holds no .json file of captions.")
    folder = options.image_folder or own_folder(source)
    return RowReader(CaptionRows(source, files, folder), _Converter(folder))


class CaptionRows:
    """The annotations of COCO-like files by number.

    A file is decoded once in a process, and what is needed of it kept.

    Args:
        source: The folder or file that keys are relative to.
        files: The files.
        folder: Where the images are, for an estimate of their size.

    Raises:
        ValueError: A file is not of COCO's form.
    """

    def __init__(self, source: Path, files: Sequence[Path], folder: Path) -> None:
        self.source = source
        self.files = tuple(files)
        self.folder = folder
        self._kept: dict[Path, list[_Caption]] = {}
        for path in self.files:
            self._captions(path)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": {}}

    def pieces(self) -> Sequence[Piece]:
        """Lists stretches of annotations."""
        pieces = []
        for path in self.files:
            captions = self._captions(path)
            measured = captions[:_IMAGES_MEASURED]
            sizes = [
                max((loose_size_bytes(self.folder, name) for name in caption.names), default=0)
                for caption in measured
            ]
            mean_bytes = sum(sizes) / len(sizes) if sizes else 0.0
            for first in range(0, len(captions), _PIECE_CAPTIONS):
                stop = min(first + _PIECE_CAPTIONS, len(captions))
                size_bytes = round((stop - first) * mean_bytes)
                pieces.append(Piece(path=path, first=first, stop=stop, size_bytes=size_bytes))
        return pieces

    def read(self, piece: Piece) -> Iterator[Row]:
        """Yields the captions of a piece."""
        name = name_in_source(self.source, piece.path)
        captions = self._captions(piece.path)
        stop = piece.stop if piece.stop >= 0 else len(captions)
        for number in range(piece.first, stop):
            yield Row(key=f"{name}#{number}", number=number, value=captions[number])

    def _captions(self, path: Path) -> list[_Caption]:
        if path not in self._kept:
            self._kept[path] = _load(path)
        return self._kept[path]


def _load(path: Path) -> list[_Caption]:
    try:
        with open(path, "rb") as stream:
            content = json.load(stream)
        names = {image["id"]: image["file_name"] for image in content["images"]}
        annotations = content["annotations"]
        return [
            _Caption(
                identity=annotation.get("id"),
                text=annotation.get("caption"),
                image_id=annotation.get("image_id"),
                names=_image_names(annotation.get("image_id"), names),
            )
            for annotation in annotations
        ]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(
            f'The file {path} is not of COCO\'s form with "images" and "annotations": {error!r}.'
        ) from error


def _image_names(image_id: Any, names: dict[Any, Any]) -> tuple[str, ...]:
    file_name = names.get(image_id) if isinstance(image_id, int | str) else None
    if not isinstance(file_name, str):
        return ()
    found = [file_name]
    found += [f"{part}/{file_name}" for part in ("train2014", "val2014") if part in file_name]
    if isinstance(image_id, int):
        found += [f"{part}{image_id:012d}.jpg" for part in ("", "train2017/", "val2017/")]
    return tuple(found)


class _Converter:
    """Makes the sample of a caption."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, row: Row) -> Iterator[RawSample]:
        caption: _Caption = row.value
        if not isinstance(caption.text, str):
            raise Refusal(RejectionReason.INVALID_RECORD, 'The "caption" is not text.')
        if not caption.text.strip():
            raise Refusal(RejectionReason.EMPTY_TEXT, 'The "caption" has no text.')
        if not caption.names:
            raise Refusal(
                RejectionReason.MISSING_IMAGE,
                f"No image of the file has the image_id {caption.image_id!r}.",
            )
        image = read_loose(self.folder, caption.names)
        yield caption_sample(row.key, caption.text, image, {"id": caption.identity})

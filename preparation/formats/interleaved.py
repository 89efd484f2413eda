"""Documents of sentences and images: MMC4, MOMIJI and llm-jp's Japanese interleaved data.

A document has `text_list` (sentences), `image_info` (one object for each image) and often
`similarity_matrix`, `len(image_info)` x `len(text_list)`; see the data card of
github.com/allenai/mmc4. An image's object has `matched_text_index` and `matched_sim` there. The
images themselves come as `image_base64` in it, as `data_prepare/mmc4` of github.com/NVlabs/VILA
writes them, or as a file `image_name` in the image folder. The kinds of file:

- `pkl`: lists of documents beside a `.count`, in any subfolder: VILA's form of MMC4 and the form
  that Heron-NVILA trained on MOMIJI in. In it VILA drops images without a row of the matrix and
  never says so.
- `jsonl`, also gzipped: the published form. llm-jp's Japanese interleaved data are JSONL at
  gitlab.llm-jp.nii.ac.jp/datasets/llm-jp-japanese-interleaved-data without the images; by
  `data_prepare/README.md` of github.com/u8-zawa/llm-jp-VILA one downloads those, stores them as
  `image_base64` and reads the result as MMC4. The JSONL files themselves were not at hand.
- `tar`: a document as the part `json`, its images as the parts `0.jpg`, `1.png`, ... This kind is
  published by none of the three; it is for sources that were packed by hand.

MOMIJI's public form has `docId`, `url` and `image_info` with `url` and `placeholder`, but no text;
github.com/turingmotors/momiji_generator adds `text_list` from the pages, in which the placeholders
(`[[IMAGE: ...]]`) say where the images stood. Images without an index and a matrix stand there.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from preparation.clip import ClipSimilarity
from preparation.formats.fields import (
    as_object,
    identity,
    list_field,
    number_or_none,
    plain_text,
    texts_field,
)
from preparation.formats.files import find_files, own_folder
from preparation.formats.images import IMAGE_SUFFIXES, embedded, read_loose
from preparation.formats.json_rows import JSON_SUFFIXES, JsonRows
from preparation.formats.pickle_rows import PickleRows
from preparation.formats.rows import Refusal, Row, RowReader, Rows
from preparation.formats.tar_rows import TarRows
from preparation.placement import (
    Placement,
    in_text_order,
    most_similar_first,
    place_by_similarity,
    similarity_rows,
    without_trailing,
    write_document,
)
from preparation.reasons import RejectionReason
from preparation.source import RawImage, RawSample, Reader, ReaderOptions, Rejected

MAX_IMAGES = 6
_NAME_FIELDS = ("docId", "id", "url")
_NO_TEXT = (
    'The document has no "text_list": it is in the public form of MOMIJI. Run '
    "retrieve_text_from_jsonl.py of github.com/turingmotors/momiji_generator on the file, download "
    'the images and store each as "image_base64" in its "image_info".'
)


def open_interleaved(source: Path, options: ReaderOptions) -> Reader:
    """Opens a source of documents of whichever kind it is.

    Raises:
        ValueError: The source holds files of no kind or of several, or documents without text.
    """
    rows = _find_rows(source)
    if isinstance(rows, JsonRows):
        first = rows.first_value()
        if not isinstance(first, Mapping) or "image_info" not in first:
            raise ValueError(f'The source {source} has no document with "image_info".')
        if "text_list" not in first:
            raise ValueError(f"In {source}: {_NO_TEXT}")
    folder = options.image_folder or own_folder(source)
    clip = None if options.clip_model is None else ClipSimilarity(options.clip_model)
    return RowReader(rows, DocumentMaker(folder, options.max_images or MAX_IMAGES, clip))


def _find_rows(source: Path) -> Rows:
    kinds = {
        ".pkl": (PickleRows, find_files(source, (".pkl",))),
        ".jsonl": (JsonRows, find_files(source, JSON_SUFFIXES)),
        ".tar": (TarRows, find_files(source, (".tar",))),
    }
    found = [name for name, (_, files) in kinds.items() if files]
    if ".jsonl" in found and len(found) > 1:  # statistics of the other kind
        found.remove(".jsonl")
    if len(found) != 1:
        raise ValueError(
            f"The source {source} holds {' and '.join(found) or 'no'} files; documents are files "
            f"of one of the kinds {', '.join(kinds)}."
        )
    rows, files = kinds[found[0]]
    return rows(source, files)


class DocumentMaker:
    """Makes a sample of a document.

    Args:
        folder: Where images are that records only name.
        max_images: No more are kept of a document, the most similar ones.
        clip: Places the images, or None to let the record do so.
    """

    def __init__(self, folder: Path, max_images: int, clip: ClipSimilarity | None = None) -> None:
        self.folder = folder
        self.max_images = max_images
        self.clip = clip

    def __call__(self, row: Row) -> Iterator[RawSample | Rejected]:
        """Makes the sample; an image that cannot be used is rejected for itself."""
        document, parts = _document_of(row)
        if document.get("text_list") is None and "image_info" in document:
            raise Refusal(RejectionReason.INVALID_RECORD, _NO_TEXT)
        infos = [as_object(info, "An image_info") for info in list_field(document, "image_info")]
        sentences = [plain_text(sentence) for sentence in texts_field(document, "text_list")]
        sentences, own_places = _take_placeholders(sentences, infos)
        if not any(sentence.strip() for sentence in sentences):
            raise Refusal(RejectionReason.EMPTY_TEXT, "The document has no text.")
        if self.clip is None:
            places = _places_of_record(document, infos, sentences, own_places)
        else:
            places = {number: None for number in range(len(infos))}
        images: dict[int, RawImage] = {}
        dropped: list[Rejected] = []
        for number in self._order_of_reading(places, sentences):
            if self.clip is None and len(images) == self.max_images:
                break
            try:
                images[number] = self._read(infos[number], number, parts)
            except Refusal as refusal:
                if refusal.reason is not RejectionReason.MISSING_IMAGE:
                    raise
                dropped.append(_dropped(row.key, number, refusal.reason, refusal.message))
        if infos and not images and len(dropped) == len(infos):
            raise Refusal(RejectionReason.MISSING_IMAGE, dropped[0].message)
        if self.clip is not None:
            places = self._places_by_clip(images, sentences)
        yield from dropped
        yield from _unplaced(row.key, infos, places)
        yield self._sample(row.key, document, sentences, places, images)

    def _order_of_reading(
        self, places: Mapping[int, Placement | None], sentences: Sequence[str]
    ) -> list[int]:
        """The numbers of the images that may be kept, the likeliest first."""
        if self.clip is not None:
            return list(places)
        given = [place for place in places.values() if place is not None]
        return [place.image for place in most_similar_first(without_trailing(given, sentences))]

    def _read(self, info: Mapping[str, Any], number: int, parts: Mapping[str, bytes]) -> RawImage:
        named = info.get("image_name")
        name = str(named or info.get("raw_url") or info.get("url") or f"image {number}")
        for suffix in IMAGE_SUFFIXES:
            if f"{number}{suffix}" in parts:
                return embedded(parts[f"{number}{suffix}"], name)
        if info.get("image_base64") is not None:
            return embedded(info["image_base64"], name)
        if isinstance(named, str):
            return read_loose(self.folder, [named])
        raise Refusal(
            RejectionReason.MISSING_IMAGE,
            f'The image {name} has neither "image_base64" nor an "image_name".',
        )

    def _places_by_clip(
        self, images: Mapping[int, RawImage], sentences: Sequence[str]
    ) -> dict[int, Placement | None]:
        assert self.clip is not None
        matrix = self.clip.matrix(list(images.values()), sentences)
        return {
            number: place_by_similarity(number, row, sentences)
            for number, row in zip(images, matrix, strict=True)
        }

    def _sample(
        self,
        key: str,
        document: Mapping[str, Any],
        sentences: Sequence[str],
        places: Mapping[int, Placement | None],
        images: Mapping[int, RawImage],
    ) -> RawSample:
        usable = [place for place in places.values() if place is not None and place.image in images]
        usable = most_similar_first(without_trailing(usable, sentences))[: self.max_images]
        kept = in_text_order(usable)
        similarity = tuple(place.similarity for place in kept if place.similarity is not None)
        return RawSample(
            key=key,
            record={
                "document": write_document(sentences, kept),
                **identity(document, _NAME_FIELDS),
            },
            images=tuple(images[place.image] for place in kept),
            similarity=similarity if kept and len(similarity) == len(kept) else None,
        )


def _document_of(row: Row) -> tuple[Mapping[str, Any], Mapping[str, bytes]]:
    """Returns the document, and the parts that it came with in a tar."""
    value = as_object(row.value)
    if not isinstance(value.get("json"), bytes):
        return value, {}
    try:
        return as_object(json.loads(value["json"])), value
    except (ValueError, RecursionError) as error:
        raise Refusal(
            RejectionReason.INVALID_RECORD, f"The part json is not JSON: {error}."
        ) from error


def _take_placeholders(
    sentences: Sequence[str], infos: Sequence[Mapping[str, Any]]
) -> tuple[list[str], dict[int, tuple[int, int]]]:
    """Removes the placeholders of images from sentences; returns both, sentence and offset."""
    numbers: dict[str, int] = {}
    for number, info in enumerate(infos):
        mark = info.get("placeholder")
        if isinstance(mark, str) and mark:
            numbers.setdefault(mark, number)
    if not numbers:
        return list(sentences), {}
    marks = re.compile("|".join(re.escape(mark) for mark in sorted(numbers, key=len, reverse=True)))
    found: dict[int, tuple[int, int]] = {}
    cleaned = []
    for sentence_number, sentence in enumerate(sentences):
        rest, end = "", 0
        for match in marks.finditer(sentence):
            rest += sentence[end : match.start()]
            end = match.end()
            found.setdefault(numbers[match.group()], (sentence_number, len(rest)))
        cleaned.append(rest + sentence[end:])
    return cleaned, found


def _places_of_record(
    document: Mapping[str, Any],
    infos: Sequence[Mapping[str, Any]],
    sentences: Sequence[str],
    own_places: Mapping[int, tuple[int, int]],
) -> dict[int, Placement | None]:
    """Places each image by its index, else by its row of the matrix, else where it stood."""
    rows = similarity_rows(document.get("similarity_matrix"), len(infos), len(sentences))
    places: dict[int, Placement | None] = {}
    for number, (info, row) in enumerate(zip(infos, rows, strict=True)):
        index = number_or_none(info.get("matched_text_index"))
        if index is not None and index.is_integer() and 0 <= index < len(sentences):
            similarity = (
                number_or_none(info.get("matched_sim")) if row is None else float(row[int(index)])
            )
            places[number] = Placement(image=number, sentence=int(index), similarity=similarity)
        elif row is not None:
            places[number] = place_by_similarity(number, row, sentences)
        elif number in own_places:
            sentence, offset = own_places[number]
            places[number] = Placement(image=number, sentence=sentence, offset=offset)
        else:
            places[number] = None
    return places


def _unplaced(
    key: str, infos: Sequence[Mapping[str, Any]], places: Mapping[int, Placement | None]
) -> Iterator[Rejected]:
    for number, place in places.items():
        if place is None:
            given = infos[number].get("matched_text_index")
            message = (
                f"Image {number} has no row in the similarity matrix and no place in the text; its "
                f"matched_text_index is {given!r}."
            )
            yield _dropped(key, number, RejectionReason.UNPLACED_IMAGE, message)


def _dropped(key: str, number: int, reason: RejectionReason, message: str) -> Rejected:
    return Rejected(key=f"{key}/image-{number}", reason=reason, message=message, is_image=True)

"""A format of the tests: a folder of JSON files, each a piece of a few records."""

import base64
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from preparation.engine import Preparation
from preparation.options import PrepareOptions
from preparation.reasons import RejectionReason
from preparation.source import FormatRow, Piece, RawImage, RawSample, ReaderOptions, Rejected


class ToyReader:
    def __init__(self, folder: Path, options: ReaderOptions) -> None:
        self.folder = folder

    def pieces(self) -> list[Piece]:
        return [
            Piece(path=path, size_bytes=path.stat().st_size)
            for path in sorted(self.folder.glob("*.json"))
        ]

    def read(self, piece: Piece) -> Iterator[RawSample | Rejected]:
        for number, record in enumerate(json.loads(piece.path.read_text())):
            key = f"{piece.path.name}#{number}"
            if "broken" in record:
                yield Rejected(
                    key=key, reason=RejectionReason.INVALID_RECORD, message=record["broken"]
                )
                continue
            images = tuple(
                RawImage(name=f"image {n}", data=base64.b64decode(data))
                for n, data in enumerate(record.pop("files", ()))
            )
            similarity = record.pop("similarity", None)
            yield RawSample(
                key=key,
                record=record,
                images=images,
                similarity=None if similarity is None else tuple(similarity),
            )


TOY = FormatRow(make=ToyReader, description="toys", max_tiles=3, licence="CC0-1.0")


def picture(seed: int, size: tuple[int, int] = (48, 40)) -> Image.Image:
    """A smooth picture of its own for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, form: str = "JPEG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def caption(text: str, *files: bytes, **more) -> dict:
    record = {"document": "<image>\n" * len(files) + text, **more}
    if files:
        record["files"] = [base64.b64encode(data).decode() for data in files]
    return record


def chat(question: str, answer: str, *files: bytes, **more) -> dict:
    turns = [
        {"from": "human", "value": "<image>\n" * len(files) + question},
        {"from": "gpt", "value": answer},
    ]
    files = [base64.b64encode(data).decode() for data in files]
    return {"conversations": turns, "files": files, **more}


def write_source(folder: Path, files: list[list[dict]]) -> Path:
    folder.mkdir(parents=True)
    for number, records in enumerate(files):
        (folder / f"{number:03d}.json").write_text(json.dumps(records))
    return folder


def write_mixed_source(folder: Path, files: int = 6, per_file: int = 8) -> Path:
    """Captions, chats, texts, duplicates across files, and what every run rejects."""
    content = []
    for file in range(files):
        records = []
        for number in range(per_file):
            seed = file * per_file + number
            data = encoded(picture(seed))
            records.append(
                [
                    caption(f"caption {seed}", data),
                    chat("What?", f"answer {seed}", data, encoded(picture(seed), "PNG")),
                    caption("the same everywhere", encoded(picture(10_000))),
                    caption(f"only text {seed}"),
                ][number % 4]
            )
        records.append(caption("cut", encoded(picture(file))[:300]))
        records.append({"broken": f"no record {file}"})
        content.append(records)
    return write_source(folder, content)


def write_llava_source(folder: Path, files: int = 6, per_file: int = 8) -> Path:
    """A source that processes of their own read too: they cannot import the toys.

    In each file there are a text, a record without its image, one with a cut image, a line that is
    no JSON, and one that is the same in all files; of the others some show the same picture.
    """
    folder.mkdir(parents=True)
    (folder / "cut.jpg").write_bytes(encoded(picture(10_000))[:300])
    (folder / "same.jpg").write_bytes(encoded(picture(10_001)))
    for file in range(files):
        names = ["cut.jpg", "absent.jpg", "same.jpg", None]
        lines = ["this is no JSON"]
        for number in range(per_file):
            names.append(f"{file}-{number}.jpg")
            (folder / names[-1]).write_bytes(encoded(picture(number + file * (number % 3))))
        for name in names:
            question = "<image>\nWhat?" if name else "What?"
            answer = name if name in ("same.jpg", None) else f"{file} {name}"
            turns = [
                {"from": "human", "value": question},
                {"from": "gpt", "value": answer or f"text {file}"},
            ]
            record = {"conversations": turns} | ({"image": name} if name else {})
            lines.append(json.dumps(record))
        (folder / f"{file}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def request(source: Path, out: Path, **changes) -> PrepareOptions:
    return PrepareOptions(source=source, format="toy", out=out, **changes)


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def run(options: PrepareOptions, **how) -> dict:
    """Prepares toys."""
    return Preparation(TOY, options, io.StringIO()).run(**how)


def samples_of(out):
    """The samples of all shards in order: JSON part and images."""
    samples = {}
    for path in sorted(out.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                samples.setdefault(key, {})[extension] = tar.extractfile(member).read()
    return [(json.loads(parts.pop("json")), parts) for parts in samples.values()]


def rejected_of(out):
    lines = (out / "rejected.jsonl").read_text().splitlines()
    return [(entry["key"], entry["reason"]) for entry in map(json.loads, lines)]

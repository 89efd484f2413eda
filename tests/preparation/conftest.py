import io
import json
import pickle
from pathlib import Path

import pytest
from PIL import Image

from preparation.formats import FORMATS
from preparation.source import RawSample, ReaderOptions, Rejected


def _picture(colour, form="JPEG", size=(32, 24)):
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, form)
    return stream.getvalue()


@pytest.fixture(scope="session")
def picture():
    """Makes the bytes of an image file."""
    return _picture


@pytest.fixture(scope="session")
def red():
    return _picture("red")


@pytest.fixture(scope="session")
def blue():
    return _picture("blue", "PNG")


@pytest.fixture
def read():
    """Opens a source and reads all of it, after a round trip through a pickle as in a pool."""

    def read_all(name, source, **options):
        reader = FORMATS[name].make(Path(source), ReaderOptions(**options))
        pieces = reader.pieces()
        assert pieces == FORMATS[name].make(Path(source), ReaderOptions(**options)).pieces()
        reader = pickle.loads(pickle.dumps(reader))
        found = [item for piece in pieces for item in reader.read(piece)]
        assert found == [item for piece in pieces for item in reader.read(piece)]
        samples = [item for item in found if isinstance(item, RawSample)]
        rejected = [item for item in found if isinstance(item, Rejected)]
        assert len(samples) + len(rejected) == len(found)
        assert len({item.key for item in found}) == len(found)
        for sample in samples:
            text = json.dumps(sample.record)
            assert text.count("<image>") == len(sample.images)
        return samples, rejected

    return read_all


@pytest.fixture
def write_lines():
    """Writes JSONL."""

    def write(path, records):
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        path.write_text("".join(lines), encoding="utf-8")
        return path

    return write

"""Map-style data sets: a global sample number goes in, an encoded sample comes out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from torch.utils.data import Dataset

from datamodules.bad_samples import BadSampleLog
from datamodules.blend import Blend
from datamodules.collate import Encoded
from datamodules.encoder import EncodingPlan
from datamodules.images import ImageStore
from datamodules.permutation import mix
from datamodules.read_watch import ReadWatch
from datamodules.record_index import RecordError, RecordIndex
from datamodules.sample_encoder import SampleEncoder
from sample_loaders.conversation import IMAGE_PLACEHOLDER
from sample_loaders.document import parse_record
from sample_loaders.errors import BadSample, Reason
from sample_loaders.placeholders import with_our_placeholders

# Long enough that no run reaches its end, short enough for float and int64 arithmetic on it.
ENDLESS = 2**40
FILLER_KEY = "filler"

Read = TypeVar("Read")


class RowOrder(Protocol):
    """The rows of a file that belong to a source."""

    def __len__(self) -> int: ...

    def __getitem__(self, position: int, /) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Some records of one file, with their images.

    Attributes:
        name: Stands in sample keys and in the list of bad samples.
        records: The file.
        rows: The file's rows that belong to the source, by position.
        images: Where its images are.
        image_token: What stands for an image in the text of its records.
    """

    name: str
    records: RecordIndex
    rows: RowOrder
    images: ImageStore
    image_token: str = IMAGE_PLACEHOLDER

    def __len__(self) -> int:
        return len(self.rows)

    def key(self, position: int) -> str:
        """Names a sample by its file and its row, counted from 0."""
        return f"{self.name}#{self.rows[position]}"

    def plan(self, position: int, encoder: SampleEncoder[Any]) -> "PlannedSample":
        """Reads a sample and plans it; its images are not decoded yet.

        Raises:
            BadSample: It cannot be used.
        """
        try:
            record = self.records[self.rows[position]]
        except RecordError as error:
            raise BadSample(Reason.INVALID_JSON, str(error)) from error
        record = with_our_placeholders(record, self.image_token)
        sample = parse_record(record, self.key(position), self.name)
        return PlannedSample(plan=encoder.plan(sample, self.images), source=self)

    def encode(self, position: int, encoder: SampleEncoder[Any]) -> Encoded:
        """Reads and encodes a sample.

        Raises:
            BadSample: It cannot be used.
        """
        return self.plan(position, encoder).decode(encoder)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedSample:
    """A sample of a source whose length is known, and whose images are not decoded."""

    plan: EncodingPlan
    source: Source

    @property
    def length(self) -> int:
        """Number of positions."""
        return self.plan.length

    @property
    def tiles(self) -> int:
        """Number of tiles of all images."""
        return self.plan.tiles

    def decode(self, encoder: SampleEncoder[Any]) -> Encoded:
        """Adds the pixels.

        Raises:
            BadSample: An image is damaged.
        """
        return encoder.decode(self.plan, self.source.images)


class TrainingSamples(Dataset):
    """Blended sources without end.

    A sample that cannot be used is replaced by another record of the same source, and which one
    depends on nothing but the seed and the sample's number; so the order of all other samples
    stays, and so does what a resumed run reads.

    Args:
        sources: The sources in the order of the blend.
        blend: Which record comes at which number.
        encoder: Makes samples of records.
        log: Takes the bad samples.
        watch: Ends reads that hang.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        blend: Blend,
        encoder: SampleEncoder[Any],
        log: BadSampleLog,
        watch: ReadWatch | None = None,
    ) -> None:
        assert [len(source) for source in sources] == list(blend.sizes)
        self.sources = tuple(sources)
        self.blend = blend
        self.encoder = encoder
        self.log = log
        self.watch = watch or ReadWatch()

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, number: int) -> Encoded:
        """Returns the sample with this global number.

        Raises:
            TooManyBadSamples: Too many in a row could not be used.
        """
        return self._first_good(number, lambda source, row: source.encode(row, self.encoder))

    def plan(self, number: int) -> PlannedSample:
        """Plans the sample with this global number.

        Raises:
            TooManyBadSamples: Too many in a row could not be used.
        """
        return self._first_good(number, lambda source, row: source.plan(row, self.encoder))

    def _first_good(self, number: int, read: Callable[[Source, int], Read]) -> Read:
        index, position = self.blend[number]
        source = self.sources[index]
        attempt = 0
        while True:
            try:
                with self.watch.reading(source.key(position), source.name):
                    sample = read(source, position)
            except BadSample as error:
                self.log.skip(source.key(position), source.name, error)
            else:
                self.log.accept()
                return sample
            attempt += 1
            position = mix(self.blend.seed, number, attempt) % len(source)


class EvaluationSamples(Dataset):
    """Every record of every source once, in file order, filled up to whole global batches.

    Fillers have no label, so a mean over labels is the mean over the records, each counted once. A
    record that cannot be used becomes a filler too: a substitute would count another one twice.

    Args:
        sources: The sources, one after the other.
        encoder: Makes samples of records.
        log: Takes the bad samples.
        multiple_of: The length is rounded up to this, the global batch size.
        watch: Ends reads that hang.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        encoder: SampleEncoder[Any],
        log: BadSampleLog,
        multiple_of: int,
        watch: ReadWatch | None = None,
    ) -> None:
        self.sources = tuple(sources)
        self.encoder = encoder
        self.log = log
        self.watch = watch or ReadWatch()
        self._ends = np.cumsum([len(source) for source in sources])
        self._length = -(-int(self._ends[-1]) // multiple_of) * multiple_of

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, number: int) -> Encoded:
        """Returns a sample.

        Raises:
            TooManyBadSamples: Too many in a row could not be used.
        """
        if not 0 <= number < self._length:
            raise IndexError(f"sample {number} of {self._length}")
        if number >= self._ends[-1]:
            return self.encoder.filler(FILLER_KEY)
        index = int(np.searchsorted(self._ends, number, side="right"))
        source = self.sources[index]
        position = number - (int(self._ends[index - 1]) if index else 0)
        key = source.key(position)
        try:
            with self.watch.reading(key, source.name):
                sample = source.encode(position, self.encoder)
        except BadSample as error:
            self.log.skip(key, source.name, error)
            return self.encoder.filler(key)
        self.log.accept()
        return sample

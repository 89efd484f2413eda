"""Rows that map Hugging Face tensors to Megatron-Core tensors, and their engine.

A family's table is a list of rows. A row says from which rows of which Hugging Face tensors its
Megatron-Core tensor is made, and both directions follow from that. A key that no row takes, a key
that a row misses or a wrong shape stops the conversion with the full list, before anything is
read.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from converters.lazy import HeldTensor, LazyTensor, Stacked


class ConversionError(ValueError):
    """A checkpoint does not fit the table; the message lists every key that is off."""


@dataclass(frozen=True, slots=True)
class Run:
    """A run of rows of a Megatron-Core tensor, in order.

    Attributes:
        part: which of the Hugging Face tensors they come from; None for zeros.
        start: the first row there.
        rows: how many.
    """

    part: int | None
    start: int
    rows: int


class Row(ABC):
    """One line of a table."""

    megatron: str

    @property
    def megatron_key(self) -> str:
        """Name on the Megatron-Core side."""
        return self.megatron

    @property
    @abstractmethod
    def hf_keys(self) -> tuple[str, ...]:
        """Names on the Hugging Face side."""

    @abstractmethod
    def megatron_rows(self, hf_rows: Sequence[int]) -> int:
        """Return the rows of the Megatron-Core tensor.

        Raises:
            ConversionError: the Hugging Face tensors have other numbers of rows than they should.
        """

    @abstractmethod
    def runs(self, megatron_rows: int) -> tuple[Run, ...]:
        """Return what a Megatron-Core tensor of so many rows is made of.

        Raises:
            ConversionError: it cannot have so many rows.
        """


@dataclass(frozen=True, kw_only=True)
class _OneToOne(Row):
    """One tensor on either side."""

    hf: str
    megatron: str

    @property
    def hf_keys(self) -> tuple[str, ...]:
        """Name on the Hugging Face side."""
        return (self.hf,)


@dataclass(frozen=True, kw_only=True)
class Rename(_OneToOne):
    """The same tensor under another name."""

    def megatron_rows(self, hf_rows: Sequence[int]) -> int:
        """As many."""
        return hf_rows[0]

    def runs(self, megatron_rows: int) -> tuple[Run, ...]:
        """All of the tensor."""
        return (Run(0, 0, megatron_rows),)


@dataclass(frozen=True, kw_only=True)
class PadRows(_OneToOne):
    """Rows of a vocabulary table: padded with zeros for Megatron-Core, cut on the way back.

    `padded_rows` is the size of a new checkpoint; one from training may have more, as the padding
    depends on tensor parallelism.
    """

    rows: int
    padded_rows: int

    def megatron_rows(self, hf_rows: Sequence[int]) -> int:
        """Return `padded_rows`."""
        _refuse_rows(self.hf, hf_rows[0], self.rows)
        return self.padded_rows

    def runs(self, megatron_rows: int) -> tuple[Run, ...]:
        """Return the table and its padding."""
        if megatron_rows < self.rows:
            raise ConversionError(
                f"{self.megatron}: has {megatron_rows} rows, config.json says {self.rows} at least."
            )
        return (Run(0, 0, self.rows), Run(None, 0, megatron_rows - self.rows))


@dataclass(frozen=True, kw_only=True)
class _FuseHeads(Row):
    """Projections of a layer as one tensor, interleaved by query group.

    Megatron-Core's order: for each group the heads of the first projection, then those of the next,
    so that tensor parallelism may cut between groups.
    """

    megatron: str
    num_groups: int
    head_size: int

    @property
    @abstractmethod
    def heads_per_group(self) -> tuple[int, ...]:
        """Heads of each projection in a group, in the order of `hf_keys`."""

    def megatron_rows(self, hf_rows: Sequence[int]) -> int:
        """Return the rows of all projections."""
        for name, rows, heads in zip(self.hf_keys, hf_rows, self.heads_per_group, strict=True):
            _refuse_rows(name, rows, self.num_groups * heads * self.head_size)
        return sum(hf_rows)

    def runs(self, megatron_rows: int) -> tuple[Run, ...]:
        """Return each group's rows of each projection."""
        sizes = [heads * self.head_size for heads in self.heads_per_group]
        _refuse_rows(self.megatron, megatron_rows, self.num_groups * sum(sizes))
        return tuple(
            Run(part, group * size, size)
            for group in range(self.num_groups)
            for part, size in enumerate(sizes)
        )


@dataclass(frozen=True, kw_only=True)
class FuseQkv(_FuseHeads):
    """Query, key and value of a self-attention: each group's query heads, its key, its value."""

    query: str
    key: str
    value: str
    num_heads: int

    @property
    def hf_keys(self) -> tuple[str, ...]:
        """Names on the Hugging Face side."""
        return (self.query, self.key, self.value)

    @property
    def heads_per_group(self) -> tuple[int, ...]:
        """Query heads, one key head, one value head."""
        return (self.num_heads // self.num_groups, 1, 1)


@dataclass(frozen=True, kw_only=True)
class FuseKeyValue(_FuseHeads):
    """Key and value of a cross-attention: each group's key head, then its value head."""

    key: str
    value: str

    @property
    def hf_keys(self) -> tuple[str, ...]:
        """Names on the Hugging Face side."""
        return (self.key, self.value)

    @property
    def heads_per_group(self) -> tuple[int, ...]:
        """One key head, one value head."""
        return (1, 1)


@dataclass(frozen=True, kw_only=True)
class FuseGateUp(Row):
    """Gate and up projection of a gated MLP, stacked in this order."""

    gate: str
    up: str
    megatron: str

    @property
    def hf_keys(self) -> tuple[str, ...]:
        """Names on the Hugging Face side."""
        return (self.gate, self.up)

    def megatron_rows(self, hf_rows: Sequence[int]) -> int:
        """Return the rows of both."""
        gate, up = hf_rows
        if gate != up:
            raise ConversionError(f"{self.up}: has {up} rows, but {self.gate} has {gate}.")
        return gate + up

    def runs(self, megatron_rows: int) -> tuple[Run, ...]:
        """Return one half each."""
        inner, odd = divmod(megatron_rows, 2)
        if odd:
            raise ConversionError(f"{self.megatron}: has {megatron_rows} rows, no even number.")
        return (Run(0, 0, inner), Run(1, 0, inner))


def to_megatron(rows: Sequence[Row], tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Describe the Megatron-Core tensors that Hugging Face tensors make; nothing is read.

    Args:
        rows: the table.
        tensors: every tensor of the checkpoint, by name.

    Raises:
        ConversionError: a key is missing or surplus, or a shape is wrong.
    """
    _refuse_differences("Hugging Face", tensors, (key for row in rows for key in row.hf_keys))
    return {row.megatron_key: _fuse(row, tensors) for row in rows}


def to_hf(rows: Sequence[Row], tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Describe the Hugging Face tensors (the inverse of `to_megatron`); nothing is read.

    Raises:
        ConversionError: a key is missing or surplus, or a shape is wrong.
    """
    _refuse_differences("Megatron-Core", tensors, (row.megatron_key for row in rows))
    converted: dict[str, LazyTensor] = {}
    for row in rows:
        converted |= split(row, tensors[row.megatron_key])
    return converted


def fuse_tensors(rows: Sequence[Row], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Make Megatron-Core tensors in memory, for a model that fits there.

    Raises:
        ConversionError: a key is missing or surplus, or a shape is wrong.
    """
    held = {name: HeldTensor(tensor) for name, tensor in tensors.items()}
    return {name: tensor.whole() for name, tensor in to_megatron(rows, held).items()}


def split_tensors(rows: Sequence[Row], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Make Hugging Face tensors in memory (the inverse of `fuse_tensors`).

    Raises:
        ConversionError: a key is missing or surplus, or a shape is wrong.
    """
    held = {name: HeldTensor(tensor) for name, tensor in tensors.items()}
    return {name: tensor.whole() for name, tensor in to_hf(rows, held).items()}


def split(row: Row, tensor: LazyTensor) -> dict[str, LazyTensor]:
    """Describe the Hugging Face tensors of one row.

    Raises:
        ConversionError: the tensor cannot have so many rows.
    """
    runs: list[list[tuple[LazyTensor | None, int, int]]] = [[] for _ in row.hf_keys]
    first = 0
    # The runs of a part are in the order of its rows, in every row type.
    for run in row.runs(tensor.rows):
        if run.part is not None:
            assert run.start == sum(rows for _, _, rows in runs[run.part]), row
            runs[run.part].append((tensor, first, run.rows))
        first += run.rows
    parts: dict[str, LazyTensor] = {}
    for key, own in zip(row.hf_keys, runs, strict=True):
        shape = (sum(rows for _, _, rows in own), *tensor.shape[1:]) if tensor.shape else ()
        parts[key] = Stacked(tuple(own), shape, tensor.dtype)
    return parts


def refuse_other_shapes(
    expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], sentence: str
) -> None:
    """Compare names and shapes.

    Raises:
        ConversionError: they differ; its message is the sentence and what differs.
    """
    different = [f"{name} is missing" for name in sorted(expected.keys() - found.keys())]
    different += [f"{name} is surplus" for name in sorted(found.keys() - expected.keys())]
    different += [
        f"{name} has shape {list(found[name])}, expected {list(expected[name])}"
        for name in sorted(expected.keys() & found.keys())
        if tuple(expected[name]) != tuple(found[name])
    ]
    if different:
        raise ConversionError(f"{sentence}: {shortened(different)}.")


def shortened(differences: list[str], shown: int = 12) -> str:
    """Join what differs; a wrong width makes all tensors differ, so only some are named."""
    more = f"; and {len(differences) - shown} more" if len(differences) > shown else ""
    return "; ".join(differences[:shown]) + more


def _fuse(row: Row, tensors: Mapping[str, LazyTensor]) -> LazyTensor:
    parts = [tensors[key] for key in row.hf_keys]
    if len({part.shape[1:] for part in parts}) > 1:
        widths = ", ".join(
            f"{name} {list(part.shape)}" for name, part in zip(row.hf_keys, parts, strict=True)
        )
        raise ConversionError(f"Tensors of one layer differ in width: {widths}.")
    rows = row.megatron_rows([part.rows for part in parts])
    runs = tuple(
        (None if run.part is None else parts[run.part], run.start, run.rows)
        for run in row.runs(rows)
    )
    shape = (rows, *parts[0].shape[1:]) if parts[0].shape else ()
    return Stacked(runs, shape, parts[0].dtype)


def _refuse_rows(name: str, found: int, wanted: int) -> None:
    if found != wanted:
        raise ConversionError(f"{name}: has {found} rows, config.json says {wanted}.")


def _refuse_differences(kind: str, found: Iterable[str], expected: Iterable[str]) -> None:
    found, expected = set(found), set(expected)
    missing, surplus = sorted(expected - found), sorted(found - expected)
    if missing or surplus:
        parts = []
        if missing:
            parts.append(f"missing: {', '.join(missing)}")
        if surplus:
            parts.append(f"not in the table: {', '.join(surplus)}")
        raise ConversionError(f"The {kind} tensors do not fit the table; {'; '.join(parts)}.")

"""Rows of a table: from which rows of Hugging Face tensors a Megatron-Core tensor is made.

Both directions of a conversion follow from a row; `converters.mapping` is the engine.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass


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


def qkv_row(hf: str, megatron: str, kind: str, heads: int, groups: int, head_size: int) -> FuseQkv:
    """Return the row of a self-attention with the usual names.

    Args:
        hf: prefix of the projections on the Hugging Face side.
        megatron: prefix of the attention on the Megatron-Core side.
        kind: weight or bias.
        heads: query heads.
        groups: key and value heads.
        head_size: of all.
    """
    return FuseQkv(
        query=f"{hf}q_proj.{kind}",
        key=f"{hf}k_proj.{kind}",
        value=f"{hf}v_proj.{kind}",
        megatron=f"{megatron}linear_qkv.{kind}",
        num_heads=heads,
        num_groups=groups,
        head_size=head_size,
    )


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


def _refuse_rows(name: str, found: int, wanted: int) -> None:
    if found != wanted:
        raise ConversionError(f"{name}: has {found} rows, config.json says {wanted}.")


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """A Hugging Face tensor that a directory may hold and that the model does not have.

    It is left out on import; export does not write it.

    Attributes:
        hf: its name; one that ends with a dot stands for all names that begin with it.
        copy_of: the tensor whose bits it must have; None where nothing reads it.
    """

    hf: str
    copy_of: str | None = None

    def is_about(self, name: str) -> bool:
        """Return whether a tensor is dropped."""
        return name.startswith(self.hf) if self.hf.endswith(".") else name == self.hf

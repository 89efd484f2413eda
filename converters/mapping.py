"""Rows that map Hugging Face tensors to Megatron-Core tensors, each invertible, and their engine.

A family's table is a list of rows. `to_megatron` and `to_hf` read the same table; a key that no row
takes, a key that a row misses or a wrong shape stops the conversion with the full list.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class ConversionError(ValueError):
    """A checkpoint does not fit the table; the message lists every key that is off."""


class Row(Protocol):
    """One line of a table."""

    @property
    def hf_keys(self) -> tuple[str, ...]:
        """Names on the Hugging Face side."""

    @property
    def megatron_key(self) -> str:
        """Name on the Megatron-Core side."""

    def fuse(self, tensors: tuple[Tensor, ...]) -> Tensor:
        """Make the Megatron-Core tensor."""

    def split(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """Make the Hugging Face tensors, in the order of `hf_keys`; no two share memory."""


@dataclass(frozen=True, kw_only=True)
class _OneToOne:
    """One tensor on either side."""

    hf: str
    megatron: str

    @property
    def hf_keys(self) -> tuple[str, ...]:
        """Name on the Hugging Face side."""
        return (self.hf,)

    @property
    def megatron_key(self) -> str:
        """Name on the Megatron-Core side."""
        return self.megatron


@dataclass(frozen=True, kw_only=True)
class Rename(_OneToOne):
    """The same tensor under another name."""

    def fuse(self, tensors: tuple[Tensor, ...]) -> Tensor:
        """Return the tensor."""
        return tensors[0]

    def split(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """Return the tensor."""
        return (tensor,)


@dataclass(frozen=True, kw_only=True)
class PadRows(_OneToOne):
    """Rows of a vocabulary table: padded with zeros for Megatron-Core, cut on the way back."""

    rows: int
    padded_rows: int

    def fuse(self, tensors: tuple[Tensor, ...]) -> Tensor:
        """float[rows, width] -> float[padded_rows, width]."""
        (table,) = tensors
        if table.shape[0] != self.rows:
            raise ConversionError(
                f"{self.hf}: has {table.shape[0]} rows, config.json says {self.rows}."
            )
        padding = table.new_zeros((self.padded_rows - self.rows, *table.shape[1:]))
        return torch.cat([table, padding])

    def split(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """float[padded_rows, width] -> float[rows, width]."""
        return (tensor[: self.rows].clone(),)


@dataclass(frozen=True, kw_only=True)
class _FuseHeads(ABC):
    """Projections of a layer as one tensor, interleaved by query group.

    Megatron-Core's order: for each group the heads of the first projection, then those of the next,
    so that tensor parallelism may cut between groups.
    """

    megatron: str
    num_groups: int
    head_size: int

    @property
    @abstractmethod
    def hf_keys(self) -> tuple[str, ...]:
        """Names on the Hugging Face side."""

    @property
    @abstractmethod
    def heads_per_group(self) -> tuple[int, ...]:
        """Heads of each projection in a group, in the order of `hf_keys`."""

    @property
    def megatron_key(self) -> str:
        """Name on the Megatron-Core side."""
        return self.megatron

    def fuse(self, tensors: tuple[Tensor, ...]) -> Tensor:
        """float[heads * d, ...] for each projection -> one float[all heads * d, ...]."""
        parts = []
        for name, tensor, heads in zip(self.hf_keys, tensors, self.heads_per_group, strict=True):
            rows = self.num_groups * heads * self.head_size
            if tensor.shape[0] != rows:
                raise ConversionError(
                    f"{name}: has {tensor.shape[0]} rows, config.json says {rows}."
                )
            parts.append(tensor.reshape(self.num_groups, heads * self.head_size, *tensor.shape[1:]))
        fused = torch.cat(parts, dim=1)
        return fused.reshape(-1, *tensors[0].shape[1:])

    def split(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """Undo `fuse`."""
        grouped = tensor.reshape(self.num_groups, -1, *tensor.shape[1:])
        sizes = [heads * self.head_size for heads in self.heads_per_group]
        return tuple(
            part.reshape(-1, *tensor.shape[1:]).clone()
            for part in torch.split(grouped, sizes, dim=1)
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
class FuseGateUp:
    """Gate and up projection of a gated MLP, stacked in this order."""

    gate: str
    up: str
    megatron: str

    @property
    def hf_keys(self) -> tuple[str, ...]:
        """Names on the Hugging Face side."""
        return (self.gate, self.up)

    @property
    def megatron_key(self) -> str:
        """Name on the Megatron-Core side."""
        return self.megatron

    def fuse(self, tensors: tuple[Tensor, ...]) -> Tensor:
        """Twice float[inner, width] -> float[2 * inner, width]."""
        gate, up = tensors
        if gate.shape[0] != up.shape[0]:
            raise ConversionError(
                f"{self.up}: has {up.shape[0]} rows, but {self.gate} has {gate.shape[0]}."
            )
        return torch.cat(tensors)

    def split(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """Undo `fuse`."""
        gate, up = tensor.chunk(2)
        return gate.clone(), up.clone()


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


def to_megatron(rows: list[Row], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert Hugging Face tensors.

    Args:
        rows: the table.
        tensors: every tensor of the checkpoint, by name.

    Raises:
        ConversionError: a key is missing or surplus, or a shape is wrong.
    """
    _refuse_differences("Hugging Face", tensors, (key for row in rows for key in row.hf_keys))
    return {row.megatron_key: _fuse(row, tensors) for row in rows}


def _fuse(row: Row, tensors: Mapping[str, Tensor]) -> Tensor:
    parts = tuple(tensors[key] for key in row.hf_keys)
    if len({part.shape[1:] for part in parts}) > 1:
        widths = ", ".join(
            f"{name} {list(part.shape)}" for name, part in zip(row.hf_keys, parts, strict=True)
        )
        raise ConversionError(f"Tensors of one layer differ in width: {widths}.")
    return row.fuse(parts)


def to_hf(rows: list[Row], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert Megatron-Core tensors (the inverse of `to_megatron`).

    Raises:
        ConversionError: a key is missing or surplus.
    """
    _refuse_differences("Megatron-Core", tensors, (row.megatron_key for row in rows))
    converted: dict[str, Tensor] = {}
    for row in rows:
        converted.update(zip(row.hf_keys, row.split(tensors[row.megatron_key]), strict=True))
    return converted

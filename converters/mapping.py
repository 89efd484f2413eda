"""The engine that reads a family's table in either direction.

A family's table is a list of rows (`converters.rows`). A key that no row takes, a key that a row
misses or a wrong shape stops the conversion with the full list, before anything is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import Tensor

from converters.lazy import HeldTensor, LazyTensor, Stacked, same_bits
from converters.rows import ConversionError, Dropped, Row


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


def without_dropped(
    drops: Sequence[Dropped],
    tensors: Mapping[str, LazyTensor],
    place: str,
    release: Callable[[], None] = lambda: None,
) -> dict[str, LazyTensor]:
    """Leave out what the model does not have; copies are compared with their original.

    Args:
        drops: of the table.
        tensors: by name.
        place: argument and value, for the message.
        release: gives back the memory of what was read.

    Raises:
        ConversionError: a copy differs from its original.
    """
    kept = dict(tensors)
    for drop in drops:
        for name in filter(drop.is_about, tensors):
            original = kept.get(drop.copy_of or "")
            if original is not None and not same_bits(kept[name], original, release):
                raise ConversionError(
                    f"{place} says tie_word_embeddings, but {name} differs from {drop.copy_of}."
                )
            # Without an original the copy stays, and is one of the surplus names.
            if drop.copy_of is None or original is not None:
                kept.pop(name)
    return kept


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

"""How a conversion is wanted, and what it says about itself."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from converters.lazy import LazyTensor, cast

DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16")}
_PROBE_BYTES = 64 * 2**20


@dataclass(frozen=True, kw_only=True)
class Request:
    """How to convert.

    Attributes:
        dtype: of all tensors: float32, bfloat16 or float16; None keeps the model's.
        jobs: processes that write.
        dry_run: only say what would be written.

    Raises:
        ValueError: an unknown dtype, or no process.
    """

    dtype: str | None = None
    jobs: int = 1
    dry_run: bool = False

    def __post_init__(self) -> None:
        if self.dtype is not None and self.dtype not in DTYPES:
            raise ValueError(f"dtype: {self.dtype!r} is unknown; allowed are {', '.join(DTYPES)}.")
        if self.jobs < 1:
            raise ValueError(f"jobs: {self.jobs} processes cannot write; allowed are 1 and more.")


DEFAULT = Request()


def in_one_dtype(
    tensors: Mapping[str, LazyTensor], dtype: str | None, place: str
) -> dict[str, LazyTensor]:
    """Return tensors in the one type that a model has.

    A NeMo checkpoint has one: a model of several would lose bits, a quantised one its meaning.

    Args:
        tensors: by name.
        dtype: the wanted one; None for the only one that there is.
        place: argument and value, for the message.

    Raises:
        ValueError: there are several and none is wanted, or integers.
    """
    names = {
        str(tensor.dtype).removeprefix("torch."): tensor.dtype in DTYPES.values()
        for tensor in tensors.values()
    }
    if not all(names.values()) or (dtype is None and len(names) > 1):
        raise ValueError(
            f"{place} has tensors of type {', '.join(sorted(names))}; one of float32, bfloat16 "
            "and float16 is needed for all"
            + (", or the option --dtype" if all(names.values()) else "")
            + "."
        )
    if dtype is None:
        return dict(tensors)
    return {name: cast(tensor, DTYPES[dtype]) for name, tensor in tensors.items()}


def total_bytes(tensors: Mapping[str, LazyTensor]) -> int:
    """Return the bytes of all tensors."""
    return sum(tensor.nbytes for tensor in tensors.values())


def figures(tensors: Mapping[str, LazyTensor]) -> dict[str, object]:
    """Return numbers for a report."""
    return {
        "tensors": len(tensors),
        "bytes": total_bytes(tensors),
        "dtype": str(next(iter(tensors.values())).dtype).removeprefix("torch."),
    }


def plan(tensors: Mapping[str, LazyTensor], out: str | Path) -> dict[str, object]:
    """Return what would be written to a place, and how long about it would take.

    The disk is tried with a file of 64 MB, which is removed.

    Raises:
        ValueError: the place cannot be written to.
    """
    parent = Path(out).resolve().parent
    while not parent.is_dir():
        parent = parent.parent
    try:
        with tempfile.TemporaryFile(dir=parent) as file:
            block = os.urandom(2**20)
            started = time.perf_counter()
            for _ in range(_PROBE_BYTES // len(block)):
                file.write(block)
            os.fsync(file.fileno())
            rate = _PROBE_BYTES / (time.perf_counter() - started)
    except OSError as error:
        raise ValueError(f"out: {parent} cannot be written to ({error.strerror}).") from error
    total = total_bytes(tensors)
    return figures(tensors) | {
        "disk_mb_per_second": round(rate / 1e6),
        "estimated_seconds": round(total / rate, 1),
        "dry_run": True,
    }

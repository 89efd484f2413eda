"""GPT-2's layers as linear ones: its files hold them transposed, and query, key and value as one.

Tables speak of linear layers, [out, in], with a projection each for query, key and value. Here the
two views are turned into each other; nothing is read before rows are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from converters.lazy import LazyTensor, Stacked
from converters.rows import ConversionError

_FUSED = re.compile(r"(.*\.)c_attn\.(weight|bias)")
_QUERY = re.compile(r"(.*\.attn\.)q_proj\.(weight|bias)")
_KEY_OR_VALUE = re.compile(r".*\.attn\.[kv]_proj\.(weight|bias)")
_CONV1D = re.compile(r".*\.(attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.weight")
_PROJECTIONS = ("q_proj", "k_proj", "v_proj")


@dataclass(frozen=True)
class Transposed(LazyTensor):
    """A matrix with its axes exchanged. For every range of rows all of the source is read."""

    source: LazyTensor

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """Of the source, exchanged."""
        rows, columns = self.source.shape
        return (columns, rows)

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        """Of the source."""
        return self.source.dtype

    def read(self, start: int, stop: int) -> Tensor:
        """Return rows [start, stop) as a copy."""
        return self.source.read(0, self.source.rows)[:, start:stop].T.contiguous()


def linear_view(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Return tensors of a GPT-2 (among others) as those of linear layers.

    Raises:
        ConversionError: a fused projection does not divide by three.
    """
    view: dict[str, LazyTensor] = {}
    for name, tensor in tensors.items():
        fused = _FUSED.fullmatch(name)
        if fused is None:
            view[name] = Transposed(tensor) if _CONV1D.fullmatch(name) else tensor
            continue
        linear = Transposed(tensor) if fused[2] == "weight" else tensor
        width, odd = divmod(linear.rows, len(_PROJECTIONS))
        if odd:
            raise ConversionError(f"{name}: has shape {list(tensor.shape)}, three projections.")
        for number, projection in enumerate(_PROJECTIONS):
            run = (linear, number * width, width)
            view[f"{fused[1]}{projection}.{fused[2]}"] = Stacked(
                (run,), (width, *linear.shape[1:]), linear.dtype
            )
    return view


def conv1d_view(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Return tensors as GPT-2's files hold them (the inverse of `linear_view`)."""
    return {
        name: Transposed(tensor) if _CONV1D.fullmatch(name) else tensor
        for name, tensor in fused_projections(tensors).items()
    }


def fused_projections(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Return tensors with query, key and value as one, not transposed."""
    fused: dict[str, LazyTensor] = {}
    for name, tensor in tensors.items():
        query = _QUERY.fullmatch(name)
        if query is not None:
            parts = [tensors[f"{query[1]}{one}.{query[2]}"] for one in _PROJECTIONS]
            rows = sum(part.rows for part in parts)
            runs = tuple((part, 0, part.rows) for part in parts)
            fused[f"{query[1]}c_attn.{query[2]}"] = Stacked(
                runs, (rows, *parts[0].shape[1:]), tensor.dtype
            )
        elif not _KEY_OR_VALUE.fullmatch(name):
            fused[name] = tensor
    return fused

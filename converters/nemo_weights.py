"""The weights of a NeMo checkpoint as lazy tensors; adapters are merged while they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from converters.lazy import LazyTensor, cast
from converters.torch_dist_reader import CheckpointFolder
from models.adapter_paths import (
    DORA,
    AdapterSettings,
    adapter_settings,
    base_checkpoint,
    is_adapter_checkpoint,
)

PREFIX = "module."
"""NeMo's checkpoints name a parameter by its place below the Lightning module."""

_INNER, _OUTER = ".adapter.linear_in.weight", ".adapter.linear_out.weight"
_MAGNITUDE = ".adapter.weight_magnitude"
_LANGUAGE, _LINEAR = "language_model.", "linear_"


@dataclass(frozen=True)
class Adapter:
    """A pair of matrices beside a linear layer: W + scale * outer inner.

    Attributes:
        inner: A, float[dim, in].
        outer: B, float[out, dim], rows as in the fused weight.
        scale: of the product.
        magnitude: of DoRA: lengths that the rows of the sum are given, float[out].
    """

    inner: LazyTensor
    outer: LazyTensor
    scale: float
    magnitude: LazyTensor | None = None


@dataclass(frozen=True)
class NemoWeights:
    """A checkpoint's model.

    Attributes:
        tensors: by their names in the model; adapted ones are merged.
        adapters: by the names of their layers; none where the checkpoint holds a whole model.
        trained: names of the tensors that a LoRA run has trained beside its adapters.
        release: gives back the memory of what has been read.
    """

    tensors: dict[str, LazyTensor]
    adapters: dict[str, Adapter]
    trained: frozenset[str]
    release: Callable[[], None]


class MergedTensor(LazyTensor):
    """A weight with its adapter, summed in fp32 and rounded once to the weight's dtype."""

    def __init__(self, weight: LazyTensor, adapter: Adapter) -> None:
        self.shape, self.dtype = weight.shape, weight.dtype
        self._weight, self._adapter = weight, adapter

    def read(self, start: int, stop: int) -> Tensor:
        """Return rows [start, stop)."""
        adapter = self._adapter
        outer = adapter.outer.read(start, stop).float()
        product = outer @ adapter.inner.whole().float()
        merged = self._weight.read(start, stop).float() + product * adapter.scale
        if adapter.magnitude is not None:
            magnitude = adapter.magnitude.read(start, stop).float()
            merged *= (magnitude / merged.norm(dim=1)).unsqueeze(1)
        return merged.to(self.dtype)


def open_weights(checkpoint: str | Path, names: Iterable[str]) -> NemoWeights:
    """Open a checkpoint; nothing but its description is read.

    Args:
        checkpoint: folder with `weights` and `context`, finished; of LoRA too.
        names: of the model's tensors.

    Raises:
        ValueError: the base of a LoRA checkpoint is gone, or the checkpoint is damaged.
        ConversionError: names are missing or surplus.
    """
    weights = Path(checkpoint) / "weights"
    if not is_adapter_checkpoint(checkpoint):
        folder = CheckpointFolder(weights, PREFIX)
        return NemoWeights(folder.tensors(names), {}, frozenset(), folder.release)
    base = CheckpointFolder(base_checkpoint(checkpoint) / "weights", PREFIX)
    own = CheckpointFolder(weights, PREFIX)
    tensors = base.tensors(names)
    settings = adapter_settings(checkpoint)
    stored = adapter_tensors(own, tensors, settings)
    adapters: dict[str, Adapter] = {}
    trained: set[str] = set()
    for name, tensor in stored.items():
        if name.endswith(_INNER):
            layer = name.removesuffix(_INNER)
            outer, magnitude = stored[layer + _OUTER], stored.get(layer + _MAGNITUDE)
            scale = settings.alpha / settings.dim
            adapters[layer] = Adapter(tensor, outer, scale, magnitude)
        elif not name.endswith((_OUTER, _MAGNITUDE)):
            trained.add(name)
            tensors[name] = cast(tensor, tensors[name].dtype)
    for layer, adapter in adapters.items():
        tensors[f"{layer}.weight"] = MergedTensor(tensors[f"{layer}.weight"], adapter)

    def release() -> None:
        base.release()
        own.release()

    return NemoWeights(tensors, adapters, frozenset(trained), release)


def adapter_tensors(
    own: CheckpointFolder, names: Iterable[str], settings: AdapterSettings
) -> dict[str, LazyTensor]:
    """Return what a LoRA checkpoint holds: all adapters, and what was trained beside them.

    Args:
        own: the LoRA checkpoint.
        names: of the base's tensors.
        settings: of the adapters.

    Raises:
        ConversionError: adapters are missing or surplus.
    """
    names = list(names)
    layers = [name.removesuffix(".weight") for name in names if name.endswith(".weight")]
    wanted = [
        layer + kind
        for layer in layers
        if _is_language_linear(layer) and settings.adapts(PREFIX + layer)
        for kind in (_INNER, _OUTER, *([_MAGNITUDE] if settings.kind == DORA else []))
    ]
    trained = [name for name in names if own.find(name) is not None]
    return own.tensors(
        wanted + trained, f"ckpt: the adapters of {own.path.parent} do not fit their base"
    )


def _is_language_linear(layer: str) -> bool:
    return layer.startswith(_LANGUAGE) and layer.rpartition(".")[2].startswith(_LINEAR)

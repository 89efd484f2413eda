"""How Megatron-Core lays a model's tensors out in a checkpoint, asked of the model itself."""

from __future__ import annotations

import copy
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import (
    ShardedObject,
    ShardedTensor,
    apply_factories,
)
from megatron.core.transformer.module import MegatronModule

from converters.checkpoint import single_process
from converters.nemo_weights import PREFIX
from converters.torch_dist_writer import StoredPart
from models.family_config import FamilyConfig


@dataclass(frozen=True)
class Structure:
    """What a checkpoint of a model holds.

    Attributes:
        parts: of every tensor, by its name in the model: where its rows go, in order.
        objects: other things that the model saves, as bytes by their name in the checkpoint.
    """

    parts: dict[str, tuple[StoredPart, ...]]
    objects: dict[str, bytes]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor."""
        return {
            name: (sum(part.rows for part in parts), *parts[0].row_shape)
            for name, parts in self.parts.items()
        }


def structure_of(config: FamilyConfig, dtype: torch.dtype) -> Structure:
    """Build the model without memory for its weights and return what it would save.

    Args:
        config: sizes.
        dtype: of the weights.
    """
    with single_process():
        return _structure(empty_model(config, dtype).sharded_state_dict(prefix=PREFIX))


def empty_model(config: FamilyConfig, dtype: torch.dtype) -> MegatronModule:
    """Build the model without memory for its weights (inside `single_process`)."""
    config = copy.deepcopy(config)
    config.params_dtype = dtype
    config.perform_initialization = False
    config.use_cpu_initialization = False
    config.init_model_with_meta_device = True
    # The layers outside of Transformer Engine take memory that nobody touches.
    with torch.device("meta"):
        return config.configure_model()


def _structure(sharded: Mapping[str, Any]) -> Structure:
    parts: dict[str, tuple[StoredPart, ...]] = {}
    objects: dict[str, bytes] = {}
    for name, value in sharded.items():
        if isinstance(value, ShardedObject):
            stream = io.BytesIO()
            torch.save([value.data], stream)
            objects[value.unique_key] = stream.getvalue()
            continue
        wanted = {name: value}
        apply_factories(wanted)  # a gated MLP's two halves are two tensors under one name
        tensors = [one for one in nested_values(wanted) if isinstance(one, ShardedTensor)]
        assert tensors, name
        parts[name.removeprefix(PREFIX)] = tuple(map(_part, tensors))
    return Structure(parts, objects)


def _part(tensor: ShardedTensor) -> StoredPart:
    assert tensor.flattened_range is None, tensor.key
    local = tuple(tensor.local_shape)
    return StoredPart(
        key=tensor.key,
        global_shape=tuple(tensor.global_shape),
        offset=tuple(tensor.global_offset),
        rows=local[0],
        row_shape=local[1:],
        prepended_axes=tensor.prepend_axis_num,
    )

"""From a data loader's batch to the model's arguments."""

from collections.abc import Iterator
from typing import Any

import torch

_DEVICE_KEYS = ("tokens", "position_ids", "labels", "loss_mask", "tiles")


def nvila_data_step(dataloader_iter: Iterator) -> dict[str, Any]:
    """Take the next micro-batch and move its tensors to the device.

    The batch is described in datamodules/collate.py. Every pipeline stage gets all of it: the
    middle stages need none of it, but their loaders must stay in step.
    """
    batch = next(dataloader_iter)
    if isinstance(batch, tuple):  # Lightning's data fetcher adds batch_idx and dataloader_idx
        batch = batch[0]
    moved = dict(batch)
    for key in _DEVICE_KEYS:
        if batch.get(key) is not None:
            moved[key] = batch[key].cuda(non_blocking=True)
    return moved


def nvila_forward_step(model: torch.nn.Module, batch: dict[str, Any]) -> Any:
    """Run the model on a micro-batch."""
    return model(
        tokens=batch["tokens"],
        position_ids=batch["position_ids"],
        tiles=batch.get("tiles"),
        labels=batch.get("labels"),
        loss_mask=batch.get("loss_mask"),
        packed_seq_params=batch.get("packed_seq_params"),
    )

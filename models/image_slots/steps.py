"""From a data loader's batch to the model's arguments."""

from collections.abc import Iterator
from typing import Any

import torch

from models.batches import packed_sequences, take_batch

_DEVICE_KEYS = (
    "tokens",
    "position_ids",
    "labels",
    "loss_mask",
    "tiles",
    "cu_seqlens",
    "answer_sequences",
)


def image_slot_data_step(dataloader_iter: Iterator) -> dict[str, Any]:
    """Take the next micro-batch (described in datamodules/collate.py)."""
    return take_batch(dataloader_iter, _DEVICE_KEYS)


def image_slot_forward_step(model: torch.nn.Module, batch: dict[str, Any]) -> Any:
    """Run the model on a micro-batch."""
    return model(
        tokens=batch["tokens"],
        position_ids=batch["position_ids"],
        tiles=batch.get("tiles"),
        labels=batch.get("labels"),
        loss_mask=batch.get("loss_mask"),
        packed_seq_params=packed_sequences(batch),
    )

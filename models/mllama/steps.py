"""From a data loader's batch to the model's arguments."""

from collections.abc import Iterator
from typing import Any

import torch

from models.batches import packed_sequences, take_batch

# The counts (tiles_per_image, images_per_sample) stay in host memory: shapes depend on them, and
# reading them from the device would make every micro-batch wait.
_DEVICE_KEYS = (
    "tokens",
    "position_ids",
    "labels",
    "loss_mask",
    "tiles",
    "aspect_ratio_ids",
    "image_spans",
    "cu_seqlens",
)


def mllama_data_step(dataloader_iter: Iterator) -> dict[str, Any]:
    """Take the next micro-batch (described in datamodules/mllama_collate.py)."""
    return take_batch(dataloader_iter, _DEVICE_KEYS)


def mllama_forward_step(model: torch.nn.Module, batch: dict[str, Any]) -> Any:
    """Run the model on a micro-batch."""
    return model(
        tokens=batch["tokens"],
        position_ids=batch["position_ids"],
        tiles=batch["tiles"],
        tiles_per_image=batch["tiles_per_image"],
        aspect_ratio_ids=batch["aspect_ratio_ids"],
        images_per_sample=batch["images_per_sample"],
        image_spans=batch["image_spans"],
        labels=batch.get("labels"),
        loss_mask=batch.get("loss_mask"),
        packed_seq_params=packed_sequences(batch),
    )

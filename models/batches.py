"""From a data loader's micro-batch to tensors on the device."""

from collections.abc import Iterator, Sequence
from typing import Any


def take_batch(dataloader_iter: Iterator, device_keys: Sequence[str]) -> dict[str, Any]:
    """Take the next micro-batch and move the named tensors to the device.

    Every pipeline stage takes all of it: some stages need little of it, but their loaders must stay
    in step.
    """
    batch = next(dataloader_iter)
    if isinstance(batch, tuple):  # Lightning's data fetcher adds batch_idx and dataloader_idx
        batch = batch[0]
    moved = dict(batch)
    for key in device_keys:
        if batch.get(key) is not None:
            moved[key] = batch[key].cuda(non_blocking=True)
    return moved

"""From a data loader's micro-batch to tensors on the device."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from megatron.core.packed_seq_params import PackedSeqParams


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


def packed_sequences(batch: Mapping[str, Any]) -> PackedSeqParams | None:
    """Return where the sequences of packed rows begin and end; None for a batch that has none.

    Args:
        batch: with cu_seqlens int32[n + 1] on the device and max_seqlen, where rows are packed.
    """
    cu_seqlens = batch.get("cu_seqlens")
    if cu_seqlens is None:
        return None
    return PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=cu_seqlens,
        cu_seqlens_kv=cu_seqlens,
        max_seqlen_q=batch["max_seqlen"],
        max_seqlen_kv=batch["max_seqlen"],
    )

"""The padding of a vocabulary, kept out of the loss."""

from __future__ import annotations

import torch
from megatron.core import parallel_state


def hide_padding(logits: torch.Tensor, vocab_size: int) -> None:
    """Take the padding columns out of the softmax, in place.

    Unmasked, they would join it with a logit of about zero: the loss of a fresh model would be
    ln(padded) and not ln(real) as in Hugging Face, and the gradients would differ with the padding.

    Args:
        logits: float[s, b, padded vocabulary / TP], this rank's columns.
        vocab_size: real columns over all ranks.
    """
    per_rank = logits.shape[-1]
    first = parallel_state.get_tensor_model_parallel_rank() * per_rank
    real = min(max(vocab_size - first, 0), per_rank)
    if real < per_rank:
        # A constant, so no gradient reaches the padding rows; finite, so a rank that holds only
        # padding contributes exp(low - max) = 0 and no NaN.
        logits[..., real:] = -1e4

"""Cross entropy over a vocabulary that is split over the tensor-parallel group."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .collectives import Group, group_size


class _ParallelCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, smoothing: float, group: Group, ignored: int
    ) -> Tensor:
        part = logits.shape[-1]
        parallel = group_size(group) > 1
        first = dist.get_rank(group) * part if parallel else 0
        scores = logits.float()
        maximum = scores.amax(dim=-1)
        if parallel:
            dist.all_reduce(maximum, op=dist.ReduceOp.MAX, group=group)
        scores = scores - maximum.unsqueeze(-1)
        local = target - first
        elsewhere = (local < 0) | (local >= part)
        local = local.masked_fill(elsewhere, 0)
        target_score = scores.gather(-1, local.unsqueeze(-1)).squeeze(-1)
        target_score = target_score.masked_fill(elsewhere, 0.0)
        sums = torch.stack((scores.exp().sum(dim=-1), target_score, scores.sum(dim=-1)))
        if parallel:
            dist.all_reduce(sums, group=group)
        normaliser, target_score, all_scores = sums.unbind()
        vocabulary = part * group_size(group)
        log_normaliser = normaliser.log()
        loss = (1.0 - smoothing) * (log_normaliser - target_score)
        loss = loss + smoothing * (log_normaliser - all_scores / vocabulary)
        keep = target != ignored
        probabilities = scores.exp() / normaliser.unsqueeze(-1)
        ctx.save_for_backward(probabilities, local, elsewhere, keep)
        ctx.smoothing, ctx.vocabulary, ctx.dtype = smoothing, vocabulary, logits.dtype
        return loss * keep

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        probabilities, local, elsewhere, keep = ctx.saved_tensors
        result = probabilities - ctx.smoothing / ctx.vocabulary
        at_target = torch.where(elsewhere, 0.0, ctx.smoothing - 1.0).to(result.dtype)
        result.scatter_add_(-1, local.unsqueeze(-1), at_target.unsqueeze(-1))
        result *= (gradient * keep).unsqueeze(-1)
        return result.to(ctx.dtype), None, None, None, None


def parallel_cross_entropy(
    logits: Tensor,
    target: Tensor,
    label_smoothing: float = 0.0,
    reduce_loss: bool = False,
    dist_process_group: Group = None,
    ignore_idx: int = -100,
    is_cg_capturable: bool = False,
) -> Tensor:
    """Returns the loss of every position in fp32, or their mean.

    Args:
        logits: `[s, b, vocabulary / tp]`, this process's part of the vocabulary.
        target: `[s, b]`, indices into the whole vocabulary, or `ignore_idx` for a loss of 0.
        label_smoothing: Share of the target's probability that is spread over the vocabulary.
        reduce_loss: Returns the mean over all positions.
        dist_process_group: The tensor-parallel group.
        ignore_idx: Target without a loss.
        is_cg_capturable: Without effect.
    """
    loss = _ParallelCrossEntropy.apply(
        logits, target, label_smoothing, dist_process_group, ignore_idx
    )
    return loss.mean() if reduce_loss else loss

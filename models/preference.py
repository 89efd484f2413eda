"""Direct preference optimisation (DPO): the objective, and its loss over a global batch.

Rafailov et al. 2023, equation 7: with m = beta ((log p(chosen) - log p(rejected)) - the same of the
reference model), a pair's loss is -log sigmoid(m). NeMo 2 has no such loss.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core import parallel_state
from nemo.lightning import io
from nemo.lightning.megatron_parallel import MegatronLossReduction
from torch.nn import functional

REFERENCE_KEY = "reference_log_probabilities"
"""Of a micro-batch: float32[n, 2], what the reference model gives the answers of each pair."""

METRICS = ("preference_loss", "sft_loss", "preference_accuracy", "preference_margin")
"""Means over the pairs of a global batch, in the order of `PreferenceLossReduction.sums`.

preference_loss: that of DPO. sft_loss: cross entropy per token of the chosen answer.
preference_accuracy: share of pairs whose margin is positive. preference_margin: m, the difference
of the two answers' rewards.
"""


@dataclass(kw_only=True)
class PreferenceObjective(io.IOMixin):
    """What is learnt from pairs of a chosen and a rejected answer.

    Attributes:
        beta: how strongly the model is held to the reference; with a higher one it moves less.
        label_smoothing: share of the pairs that are taken to be the wrong way round.
        reference_free: compare with a model to which both answers are alike; there is then no
            reference pass.
        preference_loss_weight: factor of the DPO loss.
        sft_loss_weight: factor of the cross entropy per token of the chosen answer.

    Raises:
        ValueError: a value that is not allowed.
    """

    beta: float = 0.1
    label_smoothing: float = 0.0
    reference_free: bool = False
    preference_loss_weight: float = 1.0
    sft_loss_weight: float = 0.0

    def __post_init__(self) -> None:
        """Check the values."""
        if not self.beta > 0:
            raise ValueError(f"objective.beta: {self.beta} is not allowed; it must be above 0.")
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(
                f"objective.label_smoothing: {self.label_smoothing} is not allowed; it must be at "
                "least 0 and below 0.5."
            )
        weights = (self.preference_loss_weight, self.sft_loss_weight)
        if min(weights) < 0 or max(weights) == 0:
            raise ValueError(
                f"objective.preference_loss_weight, objective.sft_loss_weight: {weights} are not "
                "allowed; neither is below 0, and one is above."
            )


def answer_log_probabilities(
    losses: torch.Tensor, batch: Mapping[str, Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum the log probabilities of the learnt tokens of each answer.

    Args:
        losses: float[b, s], cross entropy of every token.
        batch: with loss_mask float[b, s], answer_sequences int64[2 n] and, where rows are packed,
            cu_seqlens int32[sequences + 1].

    Returns:
        float32[n, 2], the chosen and the rejected answer of each pair, and the number of their
        tokens, float32[n, 2].
    """
    mask = batch["loss_mask"].float()
    by_token = torch.stack([-losses.float() * mask, mask], dim=-1).view(-1, 2)
    boundaries = batch.get("cu_seqlens")
    if boundaries is None:
        rows, length = losses.shape
        lengths = torch.full((rows,), length, device=losses.device)
    else:
        lengths = boundaries.diff().long()
    sequence = torch.repeat_interleave(
        torch.arange(len(lengths), device=losses.device), lengths, output_size=losses.numel()
    )
    sums = by_token.new_zeros(len(lengths), 2).index_add(0, sequence, by_token)
    answers = sums[batch["answer_sequences"]].view(-1, 2, 2)
    return answers[..., 0], answers[..., 1]


class PreferenceLossReduction(MegatronLossReduction):
    """The objective's loss: a mean over the pairs of a global batch.

    Attributes:
        sums: float32[5] of the last global batch: the sums of METRICS, and the number of pairs.

    Args:
        objective: what is learnt.
    """

    def __init__(self, objective: PreferenceObjective) -> None:
        super().__init__()
        self.objective = objective
        self.sums: torch.Tensor | None = None

    def forward(
        self, batch: dict[str, Any], forward_out: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """Compute the loss of a micro-batch.

        Args:
            batch: as for `answer_log_probabilities`, and REFERENCE_KEY unless reference-free.
            forward_out: cross entropy of every token float[b, s], and their mask.

        Returns:
            The sum over pairs, the number of pairs int32 (a filler is none), and what `reduce`
            takes.
        """
        losses, mask = forward_out
        log_probabilities, tokens = answer_log_probabilities(losses, {**batch, "loss_mask": mask})
        preference, margin = self._preference(log_probabilities, batch.get(REFERENCE_KEY))
        sft = -log_probabilities[:, 0] / tokens[:, 0].clamp(min=1)
        is_pair = tokens[:, 0] > 0
        objective = self.objective
        total = objective.preference_loss_weight * preference + objective.sft_loss_weight * sft
        by_pair = torch.stack([preference, sft, (margin > 0).float(), margin, torch.ones_like(sft)])
        sums = torch.where(is_pair, by_pair.detach(), 0.0).sum(dim=1)
        loss = torch.where(is_pair, total, 0.0).sum()
        return loss, is_pair.sum().int(), {"sums": sums}

    def reduce(self, losses_reduced_per_micro_batch: Sequence[Mapping[str, Any]]) -> torch.Tensor:
        """Return the mean loss of the global batch over all ranks, and keep its sums."""
        sums = torch.stack([one["sums"] for one in losses_reduced_per_micro_batch]).sum(dim=0)
        torch.distributed.all_reduce(
            sums, group=parallel_state.get_data_parallel_group(with_context_parallel=True)
        )
        self.sums = sums
        preference, sft = (sums[:2] / sums[4].clamp(min=1)).unbind()
        objective = self.objective
        return objective.preference_loss_weight * preference + objective.sft_loss_weight * sft

    def _preference(
        self, log_probabilities: torch.Tensor, reference: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the DPO loss and the margin of each pair: float32[n] both."""
        objective = self.objective
        if not objective.reference_free:
            assert reference is not None, "the reference pass comes before the loss"
            log_probabilities = log_probabilities - reference
        margin = objective.beta * (log_probabilities[:, 0] - log_probabilities[:, 1])
        smoothing = objective.label_smoothing
        loss = -(1 - smoothing) * functional.logsigmoid(margin)
        if smoothing:
            loss = loss - smoothing * functional.logsigmoid(-margin)
        return loss, margin

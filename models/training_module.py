"""NeMo's wrapper around a Megatron-Core model, the same for all families."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as L  # noqa: N812
import torch
from megatron.core.optimizer import OptimizerConfig
from nemo.collections.llm import fn
from nemo.lightning import io
from nemo.lightning.megatron_parallel import (
    MaskedTokenLossReductionWithLossMask,
    MegatronLossReduction,
)
from nemo.lightning.pytorch.optim import MegatronOptimizerModule, OptimizerModule

from models.family_config import FamilyConfig
from models.preference import PreferenceLossReduction, PreferenceObjective


class TrainingModule(L.LightningModule, io.IOMixin, io.ConnectorMixin, fn.FNMixin):
    """A model with its optimizer and loss.

    Args:
        config: of the family.
        optim: optimizer module; recipes give one.
        tokenizer: unused; NeMo's API passes it.
        model_transform: PEFT.
        objective: what is learnt from preferences; None learns to answer.
    """

    def __init__(
        self,
        config: FamilyConfig,
        optim: OptimizerModule | None = None,
        tokenizer: Any = None,
        model_transform: Callable[[torch.nn.Module], torch.nn.Module] | None = None,
        objective: PreferenceObjective | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.optim = optim or MegatronOptimizerModule(
            config=OptimizerConfig(lr=1e-4, use_distributed_optimizer=True)
        )
        self.optim.connect(self)
        self.model_transform = model_transform
        self.objective = objective
        self.starts_from: str | None = None
        self.step_sample_keys: list[str] = []
        self.step_tokens = 0
        self.step_is_skipped = False
        self._training_loss_reduction: MegatronLossReduction | None = None
        self._validation_loss_reduction: MegatronLossReduction | None = None

    def configure_model(self, vp_stage: int | None = None) -> None:
        """Build the Megatron-Core model once."""
        if not hasattr(self, "module"):
            self.module = self.config.configure_model(self.tokenizer, vp_stage=vp_stage)

    def forward(self, **arguments: Any) -> Any:
        """Forward to the Megatron-Core model."""
        return self.module(**arguments)

    def on_fit_start(self) -> None:
        """Check that data and objective go together.

        Raises:
            ValueError: only one of them is of preferences.
        """
        pairs = getattr(self.trainer.datamodule, "preference_pairs", False)
        if pairs != (self.objective is not None):
            raise ValueError(
                f"data.preference_pairs: {pairs} does not go with model.objective="
                f"{self.objective}; preferences need both, other data neither."
            )

    def data_step(self, dataloader_iter: Any) -> dict[str, Any]:
        """Take a micro-batch; in training, remember which samples it holds, and how many tokens."""
        assert self.config.data_step_fn is not None
        batch = self.config.data_step_fn(dataloader_iter)
        if self.training:
            self.step_sample_keys.extend(batch.get("sample_keys") or ())
            self.step_tokens += batch.get("num_tokens", 0)
        return batch

    def forward_step(self, batch: dict[str, Any]) -> Any:
        """Run the model on a micro-batch."""
        assert self.config.forward_step_fn is not None
        return self.config.forward_step_fn(self, batch)

    def training_step(self, batch: dict[str, Any], batch_idx: int | None = None) -> Any:
        """Run a training micro-batch; the loss is part of the forward pass."""
        return self.forward_step(batch)

    def validation_step(self, batch: dict[str, Any], batch_idx: int | None = None) -> Any:
        """Run a validation micro-batch."""
        return self.forward_step(batch)

    @property
    def training_loss_reduction(self) -> MegatronLossReduction:
        """Sum of the losses and number of supervised tokens, or of pairs, of a micro-batch."""
        if self._training_loss_reduction is None:
            self._training_loss_reduction = self._loss_reduction()
        return self._training_loss_reduction

    @property
    def validation_loss_reduction(self) -> MegatronLossReduction:
        """As `training_loss_reduction`, for validation."""
        if self._validation_loss_reduction is None:
            self._validation_loss_reduction = self._loss_reduction(validation_step=True)
        return self._validation_loss_reduction

    def _loss_reduction(self, **options: bool) -> MegatronLossReduction:
        if self.objective is not None:
            return PreferenceLossReduction(self.objective)
        return MaskedTokenLossReductionWithLossMask(**options)

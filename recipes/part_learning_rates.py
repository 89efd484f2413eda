"""Learning rates of their own for the vision tower and the projector.

Megatron-Core knows one other learning rate beside the base's. Here its parameter groups are divided
by the part of the model that a parameter belongs to, each with the multiplier that makes its rate;
schedules and checkpoints treat groups as they do anyway.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from megatron.core import optimizer as megatron_optimizer
from megatron.core.optimizer import OptimizerConfig
from nemo.lightning.megatron_parallel import MegatronParallel
from nemo.lightning.pytorch.optim import MegatronOptimizerModule
from nemo.lightning.pytorch.optim.base import LRSchedulerModule
from torch.optim import Optimizer

_VISION, _PROJECTOR = "vision_model", "vision_projection"


class PartLearningRates(MegatronOptimizerModule):
    """An optimizer whose largest learning rate, `config.lr`, is that of the language model.

    Args:
        config: of Megatron-Core; its `lr` must not be 0 where a part has a rate of its own.
        lr_scheduler: its shape holds for all parts; `min_lr` is the same for all.
        no_weight_decay_cond: as in NeMo's class.
        vision_lr: largest learning rate of the vision tower; None takes the base's.
        projector_lr: largest learning rate of what stands between the two; None takes the base's.

    Raises:
        ValueError: a rate that is not positive.
    """

    def __init__(
        self,
        config: OptimizerConfig,
        lr_scheduler: LRSchedulerModule | None = None,
        no_weight_decay_cond: Callable | None = None,
        vision_lr: float | None = None,
        projector_lr: float | None = None,
    ) -> None:
        super().__init__(config, lr_scheduler, no_weight_decay_cond)
        self.vision_lr = vision_lr
        self.projector_lr = projector_lr
        given = {"config.lr": config.lr, "vision_lr": vision_lr, "projector_lr": projector_lr}
        if vision_lr is None and projector_lr is None:
            return
        for name, value in given.items():
            if value is not None and value <= 0:
                raise ValueError(
                    f"optim.{name}: {value} is not allowed; rates are positive (what is frozen "
                    "needs none)."
                )

    def optimizers(self, model: MegatronParallel) -> list[Optimizer]:
        """Build the optimizer."""
        multipliers = {
            part: rate / self.config.lr
            for part, rate in ((_VISION, self.vision_lr), (_PROJECTOR, self.projector_lr))
            if rate is not None
        }
        with _groups_by_part(multipliers):
            return super().optimizers(model)


@contextmanager
def _groups_by_part(multipliers: Mapping[str, float]) -> Iterator[None]:
    """Let Megatron-Core divide its groups of parameters by part, while an optimizer is built."""
    build = megatron_optimizer._get_param_groups

    def build_divided(model_chunks: list[Any], *arguments: Any, **options: Any) -> list[dict]:
        groups = build(model_chunks, *arguments, **options)
        return divide(groups, _parts_of(model_chunks), multipliers)

    megatron_optimizer._get_param_groups = build_divided if multipliers else build
    try:
        yield
    finally:
        megatron_optimizer._get_param_groups = build


def divide(
    groups: list[dict[str, Any]], parts: Mapping[int, str], multipliers: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Divide groups of parameters by part.

    Every rank gets the same groups in the same order, those that are empty on it included: a
    checkpoint of a pipeline is read by ranks that hold other parts. Parts of one rate share a
    group, as groups are found again by their multipliers.

    Args:
        groups: of Megatron-Core, with `params` and `lr_mult`.
        parts: of parameters by their id.
        multipliers: of the base's learning rate, by part.
    """
    factors = [1.0, *sorted(set(multipliers.values()) - {1.0})]

    def factor_of(parameter: Any) -> float:
        return multipliers.get(parts.get(id(parameter), ""), 1.0)

    return [
        group
        | {
            "params": [one for one in group["params"] if factor_of(one) == factor],
            "lr_mult": group["lr_mult"] * factor,
        }
        for group in groups
        for factor in factors
    ]


def _parts_of(model_chunks: list[Any]) -> dict[int, str]:
    return {
        id(parameter): part
        for chunk in model_chunks
        for name, parameter in chunk.named_parameters()
        for part in (_VISION, _PROJECTOR)
        if part in name.split(".")
    }

"""`FusedSGD`: torch's SGD with the arguments of Transformer Engine's."""

from typing import Any

import torch


class FusedSGD(torch.optim.SGD):
    """Stochastic gradient descent with momentum and weight decay.

    Args:
        params: Parameters or groups of them.
        lr: Learning rate.
        momentum: Factor of the running sum of gradients.
        dampening: Share of the gradient that does not enter the momentum.
        weight_decay: L2 penalty.
        nesterov: Nesterov momentum.
        **unused: `wd_after_momentum=True` is refused; the others do not change the result.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        **unused: Any,
    ) -> None:
        if unused.get("wd_after_momentum"):
            raise NotImplementedError(
                "wd_after_momentum=True is not implemented in the CPU backend's FusedSGD."
            )
        super().__init__(
            params,
            lr=lr,
            momentum=momentum,
            dampening=dampening,
            weight_decay=weight_decay,
            nesterov=nesterov,
        )

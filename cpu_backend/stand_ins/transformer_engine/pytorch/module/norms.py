"""`te.pytorch.LayerNorm` and `te.pytorch.RMSNorm`."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import TransformerEngineBaseModule, check_arguments


def normalise(
    inp: Tensor,
    normalization: str,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    zero_centered_gamma: bool,
) -> Tensor:
    """Returns the normalised input in its own type; torch keeps the statistics in fp32."""
    gamma = weight + 1 if zero_centered_gamma else weight
    shape = (inp.shape[-1],)
    if normalization == "LayerNorm":
        return F.layer_norm(inp, shape, gamma, bias, eps)
    return F.rms_norm(inp, shape, gamma, eps)


class _Norm(TransformerEngineBaseModule):
    normalization: str

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-5,
        sequence_parallel: bool = False,
        params_dtype: torch.dtype | None = None,
        zero_centered_gamma: bool = False,
        device: torch.device | str | int = "cpu",
        **unused: Any,
    ) -> None:
        super().__init__()
        check_arguments(self, unused)
        self.eps = eps
        self.zero_centered_gamma = zero_centered_gamma
        self.sequence_parallel = sequence_parallel
        add_norm_parameters(
            self,
            "",
            hidden_size,
            normalization=self.normalization,
            zero_centered_gamma=zero_centered_gamma,
            sequence_parallel=sequence_parallel,
            dtype=params_dtype,
            device=device,
        )
        self.reset_parameters(defer_init=torch.device(device).type == "meta")

    def forward(self, inp: Tensor) -> Tensor:
        """Normalises over the last dimension."""
        bias = self.bias if self.normalization == "LayerNorm" else None
        return normalise(
            inp, self.normalization, self.weight, bias, self.eps, self.zero_centered_gamma
        )


def add_norm_parameters(
    module: TransformerEngineBaseModule,
    prefix: str,
    hidden_size: int,
    *,
    normalization: str,
    zero_centered_gamma: bool,
    sequence_parallel: bool,
    dtype: torch.dtype | None,
    device: torch.device | str | int,
) -> None:
    """Adds `<prefix>weight` and, for LayerNorm, `<prefix>bias` to a module."""
    if normalization not in ("LayerNorm", "RMSNorm"):
        raise ValueError(f"normalization={normalization!r} is not 'LayerNorm' or 'RMSNorm'.")
    dtype = dtype or torch.get_default_dtype()
    weight_init = torch.nn.init.zeros_ if zero_centered_gamma else torch.nn.init.ones_
    parameters = {"weight": weight_init}
    if normalization == "LayerNorm":
        parameters["bias"] = torch.nn.init.zeros_
    for name, init in parameters.items():
        data = torch.empty(hidden_size, dtype=dtype, device=device)
        module._add_parameter(prefix + name, data, init, tracked=False)
        # Sees a part of the sequence only, so Megatron-Core sums its gradient over TP.
        getattr(module, prefix + name).sequence_parallel = sequence_parallel


class LayerNorm(_Norm):
    """Layer normalisation with `weight` and `bias`."""

    normalization = "LayerNorm"


class RMSNorm(_Norm):
    """Root mean square normalisation with `weight`."""

    normalization = "RMSNorm"

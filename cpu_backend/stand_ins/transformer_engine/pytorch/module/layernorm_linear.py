"""`te.pytorch.LayerNormLinear`: a normalisation and the linear layer after it, in one module."""

from typing import Any

import torch
from torch import Tensor

from ..collectives import gather_sequence
from .base import Initialiser
from .linear import Linear, Output
from .norms import add_norm_parameters, normalise


class LayerNormLinear(Linear):
    """Linear(norm(x)), with `layer_norm_weight` and `layer_norm_bias` beside `weight` and `bias`.

    Args:
        in_features: Inputs of the whole layer; what is normalised.
        out_features: Outputs of the whole layer.
        eps: Added to the variance.
        normalization: "LayerNorm" or "RMSNorm".
        return_layernorm_output: Returns the normalised input too, as the last element.
        return_layernorm_output_gathered: Returns it for the whole sequence (sequence parallelism).
        zero_centered_gamma: The stored weight is gamma - 1.
        **linear: Arguments of `Linear`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        eps: float = 1e-5,
        normalization: str = "LayerNorm",
        return_layernorm_output: bool = False,
        return_layernorm_output_gathered: bool = False,
        zero_centered_gamma: bool = False,
        **linear: Any,
    ) -> None:
        if linear.get("parallel_mode") == "row":
            raise ValueError(
                "parallel_mode='row' is not 'column' or None: the norm needs all features."
            )
        # Before Linear's: it makes the parameters, and the norm's come first.
        self.eps = eps
        self.normalization = normalization
        self.zero_centered_gamma = zero_centered_gamma
        self.return_layernorm_output = return_layernorm_output
        self.return_layernorm_output_gathered = return_layernorm_output_gathered
        super().__init__(in_features, out_features, **linear)

    def _make_parameters(
        self, init: Initialiser, dtype: torch.dtype | None, device: torch.device | str | int
    ) -> None:
        add_norm_parameters(
            self,
            "layer_norm_",
            self.in_features,
            normalization=self.normalization,
            zero_centered_gamma=self.zero_centered_gamma,
            sequence_parallel=self.sequence_parallel,
            dtype=dtype,
            device=device,
        )
        if self.normalization == "RMSNorm":
            self.layer_norm_bias = None
        super()._make_parameters(init, dtype, device)

    def forward(
        self, inp: Tensor, is_first_microbatch: bool | None = None, **unused: Any
    ) -> Output:
        """Returns y[, bias][, normalised input]."""
        normalised = normalise(
            inp,
            self.normalization,
            self.layer_norm_weight,
            self.layer_norm_bias,
            self.eps,
            self.zero_centered_gamma,
        )
        if not self.return_layernorm_output:
            return self._project(normalised)
        gathered = self.return_layernorm_output_gathered and self.sequence_parallel
        if gathered:
            normalised = gather_sequence(normalised, self.tp_group)
        output = self._project(normalised, gathered=gathered)
        if isinstance(output, tuple):
            return (*output, normalised)
        return output, normalised

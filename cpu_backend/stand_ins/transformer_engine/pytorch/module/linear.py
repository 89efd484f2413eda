"""`te.pytorch.Linear`: column, row or not parallel, with or without sequence parallelism."""

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter

from ..collectives import (
    Group,
    copy_to_group,
    gather_sequence,
    reduce_from_group,
    reduce_scatter_sequence,
)
from .base import Initialiser, TransformerEngineBaseModule, check_arguments

Output: TypeAlias = Tensor | tuple[Tensor, ...]


def _default_init(weight: Tensor) -> None:
    torch.nn.init.normal_(weight, mean=0.0, std=0.023)


def set_partition(parameter: Parameter, dimension: int) -> None:
    """Marks a parameter as split over the tensor-parallel group, as Megatron-Core reads it."""
    parameter.tensor_model_parallel = True  # type: ignore[attr-defined]
    parameter.partition_dim = dimension  # type: ignore[attr-defined]
    parameter.partition_stride = 1  # type: ignore[attr-defined]


class Linear(TransformerEngineBaseModule):
    """y = x W^T + b, with the weight `[out, in]` split over rows, columns or not at all.

    Input and output are `[s, b, features]`. Column parallel: every process has all inputs and makes
    its part of the outputs. Row parallel: it has its part of the inputs, and outputs are summed.
    With sequence parallelism the unsplit side is `[s / tp, b, features]`.

    Args:
        in_features: Inputs of the whole layer, over all processes.
        out_features: Outputs of the whole layer.
        parallel_mode: "column", "row" or None.
        return_bias: Returns (y without bias, bias) instead of y.
        **unused: Arguments of Transformer Engine that do not change the result.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        sequence_parallel: bool = False,
        fuse_wgrad_accumulation: bool = False,
        tp_group: Group = None,
        tp_size: int = 1,
        get_rng_state_tracker: Callable[[], Any] | None = None,
        rng_tracker_name: str | None = None,
        init_method: Initialiser | None = None,
        bias: bool = True,
        return_bias: bool = False,
        params_dtype: torch.dtype | None = None,
        parallel_mode: str | None = None,
        parameters_split: Any = None,
        device: torch.device | str | int = "cpu",
        ub_name: str | None = None,
        **unused: Any,
    ) -> None:
        super().__init__()
        check_arguments(self, unused)
        if parallel_mode not in ("column", "row", None):
            raise ValueError(f"parallel_mode={parallel_mode!r} is not 'column', 'row' or None.")
        if parameters_split is not None:
            raise NotImplementedError(
                "parameters_split is not implemented in the CPU backend's Transformer Engine."
            )
        self._set_parallelism(tp_group, tp_size)
        self._get_rng_state_tracker = get_rng_state_tracker
        self._rng_tracker_name = rng_tracker_name
        self.parallel_mode = parallel_mode
        self.sequence_parallel = sequence_parallel and self.tp_size > 1
        self.fuse_wgrad_accumulation = fuse_wgrad_accumulation
        self.use_bias = bias
        self.return_bias = return_bias
        self.apply_bias = bias and not return_bias
        self.ub_name = ub_name
        self.in_features = self._part(in_features) if parallel_mode == "row" else in_features
        self.out_features = self._part(out_features) if parallel_mode == "column" else out_features
        self._make_parameters(init_method or _default_init, params_dtype, device)
        self.reset_parameters(defer_init=torch.device(device).type == "meta")

    def _part(self, features: int) -> int:
        if features % self.tp_size:
            raise ValueError(f"features={features} is not divisible by tp_size={self.tp_size}.")
        return features // self.tp_size

    def _make_parameters(
        self, init: Initialiser, dtype: torch.dtype | None, device: torch.device | str | int
    ) -> None:
        dtype = dtype or torch.get_default_dtype()
        weight = torch.empty(self.out_features, self.in_features, dtype=dtype, device=device)
        self._add_parameter("weight", weight, init, tracked=True)
        if self.use_bias:
            bias = torch.empty(self.out_features, dtype=dtype, device=device)
            self._add_parameter("bias", bias, torch.nn.init.zeros_, tracked=False)
        else:
            # Transformer Engine's way of saying "no bias": an empty tensor, not None.
            self.bias = torch.empty(0, dtype=dtype)
        if self.parallel_mode is None:
            return
        set_partition(self.weight, 0 if self.parallel_mode == "column" else 1)
        if self.use_bias and self.parallel_mode == "column":
            set_partition(self.bias, 0)
        elif self.use_bias:
            # Added to this process's part of the sequence, so its gradient is summed over TP.
            self.bias.sequence_parallel = self.sequence_parallel

    def forward(
        self, inp: Tensor, is_first_microbatch: bool | None = None, **unused: Any
    ) -> Output:
        """Returns y, or (y without bias, bias) with `return_bias`."""
        return self._project(inp)

    def _project(self, inp: Tensor, gathered: bool = False) -> Output:
        """Applies weight and bias; `gathered` says that the input is the whole sequence already."""
        bias = self.bias if self.apply_bias else None
        communicates = self.tp_size > 1 and self.parallel_mode is not None
        if not communicates:
            output = F.linear(inp, self.weight, bias)
        elif self.parallel_mode == "column":
            if self.sequence_parallel:
                inp = inp if gathered else gather_sequence(inp, self.tp_group)
            else:
                inp = copy_to_group(inp, self.tp_group)
            output = F.linear(inp, self.weight, bias)
        else:
            output = F.linear(inp, self.weight)
            reduce = reduce_scatter_sequence if self.sequence_parallel else reduce_from_group
            output = reduce(output, self.tp_group)
            # After the sum: every process holds the whole bias.
            output = output if bias is None else output + bias
        return (output, self.bias) if self.return_bias else output

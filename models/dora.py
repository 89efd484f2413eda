"""DoRA for the language model of a family: adapters that turn a weight, and its length by itself.

A layer computes m * (W + s B A) x / |W + s B A|, where |.| is taken by row and m is trained
(Liu et al. 2024, equation 5). NeMo's class takes the length of a row-parallel weight over this
rank's columns only, and multiplies biases too; here every tensor-parallel degree gives the same
numbers, and biases stay what they are, as in `peft`.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel import (
    gather_from_tensor_model_parallel_region,
    set_tensor_model_parallel_attributes,
)
from nemo.collections.llm.peft.dora import ParallelLinearDoRAAdapter
from nemo.collections.llm.peft.utils import get_adapter_attributes_from_linear
from nemo.lightning.pytorch.callbacks.peft import AdapterWrapper
from torch import nn

from models.adapter_paths import DORA
from models.lora import LanguageLoRA


class DirectionLinear(AdapterWrapper):
    """A linear layer whose weight an adapter turns and stretches.

    Args:
        to_wrap: the layer, with its weight.
        adapter: A and B, B being zero; gets the lengths of the weight's rows.
    """

    def __init__(self, to_wrap: nn.Module, adapter: ParallelLinearDoRAAdapter) -> None:
        super().__init__(to_wrap, adapter)
        # B is zero at first, but may have no numbers yet.
        adapter.init_weight_magnitude(self.base_lengths().to(to_wrap.weight.dtype))
        magnitude = adapter.weight_magnitude
        if adapter.input_is_parallel:
            # The same on every rank; with sequence parallelism each sees some of the positions.
            magnitude.sequence_parallel = adapter.config.sequence_parallel
        else:
            set_tensor_model_parallel_attributes(magnitude, is_parallel=True, dim=0, stride=1)

    def base_lengths(self) -> torch.Tensor:
        """Return the lengths of the rows of W: float32[rows of this rank]."""
        return self._row_lengths(self.to_wrap.weight.detach().float())

    def lengths(self) -> torch.Tensor:
        """Return the lengths of the rows of W + s B A: float32[rows of this rank].

        They are constants for the gradient, as in the paper.
        """
        adapter = self.adapter
        inner, outer = adapter.linear_in.weight.detach(), adapter.linear_out.weight.detach()
        if adapter.input_is_parallel:
            outer = gather_from_tensor_model_parallel_region(outer.T.contiguous()).T
        else:
            inner = gather_from_tensor_model_parallel_region(inner.T.contiguous()).T
        scale = adapter.alpha / adapter.dim
        weight = self.to_wrap.weight.detach().float() + scale * (outer.float() @ inner.float())
        return self._row_lengths(weight)

    def _row_lengths(self, weight: torch.Tensor) -> torch.Tensor:
        squares = weight.square().sum(dim=1)
        if self.adapter.input_is_parallel:  # this rank has some of the columns
            torch.distributed.all_reduce(
                squares, group=parallel_state.get_tensor_model_parallel_group()
            )
        return squares.sqrt()

    def forward(
        self, x: torch.Tensor, *arguments: Any, **options: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Compute the layer; dropout is on the adapter's input alone.

        Args:
            x: float[s, b, in].
            arguments: of the layer.
            options: of the layer.

        Returns:
            The output, and the bias where the layer leaves it to its caller.
        """
        output, bias, normed = self.base_linear_forward(x, *arguments, **options)
        adapted = self.adapter(normed.contiguous()).reshape(output.shape)
        stretch = (self.adapter.weight_magnitude / self.lengths()).to(output.dtype)
        added = self._added_bias() if bias is None else None
        if added is None:
            return stretch * (output + adapted), bias
        return stretch * (output - added + adapted) + added, None

    def _added_bias(self) -> torch.Tensor | None:
        """Return the bias that the layer has added itself."""
        bias = getattr(self.to_wrap, "bias", None)
        return bias if bias is not None and bias.numel() > 0 else None


@dataclass
class LanguageDoRA(LanguageLoRA):
    """DoRA on linear layers of the language model; the arguments are those of LanguageLoRA."""

    kind: ClassVar[str] = DORA

    def transform(
        self, m: nn.Module, name: str | None = None, prefix: str | None = None
    ) -> nn.Module:
        """Put an adapter beside a layer that the patterns ask for."""
        found = self.match(m, name, prefix)
        if found is None:
            return m
        parallel_input, inner, outer, no_sequence_communication, is_parallel = (
            get_adapter_attributes_from_linear(m)
        )
        adapter = ParallelLinearDoRAAdapter(
            inner,
            outer,
            self.dim,
            base_linear_name=found[1],
            activation="identity",
            column_init_method=self.lora_A_init_method,
            row_init_method=self.lora_B_init_method,
            input_is_parallel=parallel_input,
            dropout=self.dropout,
            dropout_position=self.dropout_position,
            model_parallel_config=getattr(m, "config", None),
            alpha=self.alpha,
            disable_sequence_parallel_comm=no_sequence_communication,
            base_linear_is_parallel=is_parallel,
        )
        return DirectionLinear(m, adapter)

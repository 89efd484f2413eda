"""The weights of a frozen reference model, as they stand in the model that is trained."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from megatron.core import dist_checkpointing
from nemo.lightning.megatron_parallel import MegatronParallel
from torch import nn

from models.neutral_adapters import adapter_parameters, neutral_adapters

Weights = Sequence[tuple[nn.Parameter, torch.Tensor]]


def reference_weights(model: MegatronParallel, checkpoint: Path) -> Weights:
    """Return every parameter that trains with what it is in the reference model.

    Adapters become neutral; what else trains is read from the checkpoint, so that a run that was
    stopped and resumed has the same reference. All ranks must call this.

    Args:
        model: this rank's part.
        checkpoint: of the whole model.
    """
    adapters = adapter_parameters(model)
    trained = {
        parameter.data_ptr(): parameter
        for parameter in model.parameters()
        if parameter.requires_grad and parameter not in adapters
    }
    # The entries of the state dictionary that say where these lie in the checkpoint.
    wanted = {
        name: entry
        for name, entry in model.sharded_state_dict().items()
        if isinstance(getattr(entry, "data", None), torch.Tensor)
        and entry.data.data_ptr() in trained
    }
    parameters = {name: trained[entry.data.data_ptr()] for name, entry in wanted.items()}
    assert set(parameters.values()) == set(trained.values()), "parameters without an entry"
    loaded = {}
    if _on_any_rank(bool(wanted)):
        # Into new memory: the entries point at the parameters themselves.
        beside = {
            name: replace(entry, data=torch.empty_like(entry.data, requires_grad=False))
            for name, entry in wanted.items()
        }
        loaded = dist_checkpointing.load(beside, str(checkpoint / "weights"))
    return [
        # What is loaded has more in it than was asked for.
        *((parameter, loaded[name]) for name, parameter in parameters.items()),
        *neutral_adapters(model),
    ]


@contextmanager
def in_place(weights: Weights) -> Iterator[None]:
    """Put the reference's weights where the model's are, for a while.

    Only the pointers change: the optimizer's buffers keep what is trained.
    """
    kept = [parameter.data for parameter, _ in weights]
    for parameter, tensor in weights:
        parameter.data = tensor
    try:
        yield
    finally:
        for (parameter, _), tensor in zip(weights, kept, strict=True):
            parameter.data = tensor


def _on_any_rank(value: bool) -> bool:
    flag = torch.tensor(int(value), device=torch.cuda.current_device())
    torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
    return bool(flag)

"""The random numbers of `torch.cuda` are those of the CPU's one generator.

A second generator is not possible: dropout and the initialisers draw from the generator of the
tensor's device. Megatron's tracker, which saves, seeds and restores states by name, works as it is.
"""

import logging
from collections.abc import Sequence
from typing import Any

import torch

from cpu_backend.patches import PatchLedger

# Only the name: importing the module would import Megatron-Core.
_TRACKER_LOGGER = "megatron.core.tensor_parallel.random"


class _OneGenerator(Sequence[torch.Generator]):
    """`torch.cuda.default_generators`: the CPU's generator, whatever the index."""

    def __getitem__(self, index: Any) -> Any:
        return torch.default_generator

    def __len__(self) -> int:
        return 1


def _get_rng_state(device: Any = "cuda") -> torch.Tensor:
    return torch.default_generator.get_state()


def _get_rng_state_all() -> list[torch.Tensor]:
    return [torch.default_generator.get_state()]


def _set_rng_state(new_state: torch.Tensor, device: Any = "cuda") -> None:
    torch.default_generator.set_state(new_state)


def _set_rng_state_all(new_states: Sequence[torch.Tensor]) -> None:
    for state in new_states:
        torch.default_generator.set_state(state)


def _manual_seed(seed: int) -> None:
    torch.default_generator.manual_seed(int(seed))


def _seed() -> None:
    torch.default_generator.seed()


def _initial_seed() -> int:
    return torch.default_generator.initial_seed()


def _expected_warning(record: logging.LogRecord) -> bool:
    """Drops the tracker's warning that the CPU state moved in a GPU context: here they are one."""
    return "CPU RNG state changed within GPU RNG context" not in record.getMessage()


def install(ledger: PatchLedger) -> None:
    """Sends `torch.cuda`'s and `torch.cuda.random`'s functions to the CPU's generator."""
    functions = {
        "get_rng_state": _get_rng_state,
        "get_rng_state_all": _get_rng_state_all,
        "initial_seed": _initial_seed,
        "set_rng_state": _set_rng_state,
        "set_rng_state_all": _set_rng_state_all,
        "seed": _seed,
        "seed_all": _seed,
    }
    for owner in (torch.cuda, torch.cuda.random):
        for name, function in functions.items():
            ledger.set_attribute(owner, name, function)
        # torch.manual_seed also calls these two, with the seed that it gives to the CPU anyway.
        ledger.set_attribute(owner, "manual_seed", _manual_seed)
        ledger.set_attribute(owner, "manual_seed_all", _manual_seed)
    ledger.set_attribute(torch.cuda, "default_generators", _OneGenerator())
    logger = logging.getLogger(_TRACKER_LOGGER)
    logger.addFilter(_expected_warning)
    ledger.on_restore(lambda: logger.removeFilter(_expected_warning))

"""Activation recomputation and the random number tracker."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.utils.checkpoint

_DEFAULT_NAME = "model-parallel-rng"


@contextlib.contextmanager
def activation_recompute_forward(
    activation_recompute: bool = False, recompute_phase: bool = False
) -> Iterator[None]:
    """Does nothing: the phase matters to FP8 scaling factors only."""
    yield


def checkpoint(
    function: Callable[..., Any],
    *args: Any,
    distribute_saved_activations: bool = False,
    get_rng_state_tracker: Callable[[], Any] | None = None,
    tp_group: Any = None,
    use_reentrant: bool = True,
    **kwargs: Any,
) -> Any:
    """Runs a function and recomputes it in the backward pass instead of keeping activations.

    The recomputation sees the tracker's random states of the first run, so that dropout is the
    same; torch takes care of the default generator. Inputs are kept whole on every process
    (`distribute_saved_activations` saves memory on a GPU only).
    """
    contexts = None
    if get_rng_state_tracker is not None:
        tracker = get_rng_state_tracker()
        states = tracker.get_states()
        contexts = (contextlib.nullcontext(), _with_states(tracker, states))
    return torch.utils.checkpoint.checkpoint(
        function,
        *args,
        use_reentrant=False,
        context_fn=(lambda: contexts) if contexts else torch.utils.checkpoint.noop_context_fn,
        **kwargs,
    )


@contextlib.contextmanager
def _with_states(tracker: Any, states: dict[str, torch.Tensor]) -> Iterator[None]:
    later = tracker.get_states()
    tracker.set_states(dict(states))
    try:
        yield
    finally:
        tracker.set_states(later)


class CudaRNGStatesTracker:
    """Named states of the generator: seed, save and switch between them."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forgets all states."""
        self.states_: dict[str, torch.Tensor] = {}
        self.seeds_: set[int] = set()

    def get_states(self) -> dict[str, torch.Tensor]:
        """Returns a copy of the dictionary of states."""
        return dict(self.states_)

    def set_states(self, states: dict[str, torch.Tensor]) -> None:
        """Replaces all states."""
        self.states_ = states

    def add(self, name: str, seed: int) -> None:
        """Adds a state that starts from a seed.

        Raises:
            ValueError: The seed or the name is in use.
        """
        if seed in self.seeds_:
            raise ValueError(f"seed={seed} is in use already; every state needs its own.")
        if name in self.states_:
            raise ValueError(f"name={name!r} is in use already; every state needs its own.")
        self.seeds_.add(seed)
        self.states_[name] = torch.Generator().manual_seed(seed).get_state()

    @contextlib.contextmanager
    def fork(self, name: str = _DEFAULT_NAME) -> Iterator[None]:
        """Draws from the named state inside the context."""
        if name not in self.states_:
            raise ValueError(f"name={name!r} is not one of {sorted(self.states_)}.")
        outside = torch.get_rng_state()
        torch.set_rng_state(self.states_[name])
        try:
            yield
        finally:
            self.states_[name] = torch.get_rng_state()
            torch.set_rng_state(outside)

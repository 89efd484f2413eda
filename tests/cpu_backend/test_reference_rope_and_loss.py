"""Rotary embeddings, cross entropy, recomputation, FP8 contexts and the offload context."""

import cmath

import pytest
import torch

from cpu_backend.stand_ins.transformer_engine.pytorch import fp8_autocast, fp8_model_init
from cpu_backend.stand_ins.transformer_engine.pytorch.attention import (
    _SplitAlongDim,
    apply_rotary_pos_emb,
)
from cpu_backend.stand_ins.transformer_engine.pytorch.cpu_offload import get_cpu_offload_context
from cpu_backend.stand_ins.transformer_engine.pytorch.cross_entropy import parallel_cross_entropy
from cpu_backend.stand_ins.transformer_engine.pytorch.distributed import (
    CudaRNGStatesTracker,
    checkpoint,
)


def angles(positions, rotated):
    half = torch.arange(rotated // 2) / (rotated // 2)
    freqs = torch.outer(torch.arange(positions).float(), 100.0**-half)
    return torch.cat((freqs, freqs), dim=-1)[:, None, None, :]


def rotate_as_complex(vector, position, rotated):
    """Feature i and i + rotated / 2 are the real and imaginary part of one number."""
    half = rotated // 2
    result = vector.clone()
    for i in range(half):
        turned = complex(vector[i], vector[i + half]) * cmath.exp(
            1j * position * 100.0 ** -(i / half)
        )
        result[i], result[i + half] = turned.real, turned.imag
    return result


@pytest.mark.parametrize("rotated", [8, 4])
def test_rope_turns_pairs_of_features_by_the_position(rotated):
    t = torch.randn(5, 2, 3, 8, generator=torch.Generator().manual_seed(0))
    output = apply_rotary_pos_emb(t, angles(9, rotated), tensor_format="sbhd", fused=True)
    for s in range(5):
        for b in range(2):
            for h in range(3):
                torch.testing.assert_close(
                    output[s, b, h], rotate_as_complex(t[s, b, h], s, rotated)
                )
    swapped = apply_rotary_pos_emb(t.transpose(0, 1), angles(9, rotated), tensor_format="bshd")
    torch.testing.assert_close(swapped.transpose(0, 1), output)


def test_rope_starts_again_in_every_packed_sequence():
    t = torch.randn(9, 3, 8, generator=torch.Generator().manual_seed(1))
    boundaries = torch.tensor([0, 4, 4, 9], dtype=torch.int32)
    output = apply_rotary_pos_emb(t, angles(9, 8), tensor_format="thd", cu_seqlens=boundaries)
    for token, position in enumerate([0, 1, 2, 3, 0, 1, 2, 3, 4]):
        for h in range(3):
            torch.testing.assert_close(
                output[token, h], rotate_as_complex(t[token, h], position, 8)
            )
    with pytest.raises(NotImplementedError, match="context_parallel_size=2"):
        apply_rotary_pos_emb(t, angles(9, 8), "thd", cu_seqlens=boundaries, cp_size=2)


def test_splitting_gives_views():
    mixed = torch.arange(24.0).view(2, 12)
    q, k = _SplitAlongDim.apply(mixed, 1, [8, 4])
    assert torch.equal(torch.cat((q, k), dim=1), mixed)
    assert q.data_ptr() == mixed.data_ptr()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_minus_the_log_probability(smoothing):
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(4, 3, 10, generator=generator, requires_grad=True)
    target = torch.randint(10, (4, 3), generator=generator)
    target[1, 1] = -100
    loss = parallel_cross_entropy(logits, target, smoothing)
    probability = logits.exp() / logits.exp().sum(dim=-1, keepdim=True)
    wanted_distribution = torch.full((4, 3, 10), smoothing / 10)
    wanted_distribution.scatter_add_(
        -1, target.clamp_min(0)[..., None], torch.full((4, 3, 1), 1.0 - smoothing)
    )
    expected = -(probability.log() * wanted_distribution).sum(dim=-1) * (target >= 0)
    torch.testing.assert_close(loss, expected)
    probe = torch.randn(4, 3, generator=generator)
    got = torch.autograd.grad((loss * probe).sum(), logits)[0]
    want = torch.autograd.grad((expected * probe).sum(), logits)[0]
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(
        parallel_cross_entropy(logits, target, smoothing, True), expected.mean()
    )


def test_recomputation_repeats_the_random_numbers_of_the_tracker():
    tracker = CudaRNGStatesTracker()
    tracker.add("model-parallel-rng", 5)
    calls = []
    weight = torch.ones(100, requires_grad=True)

    def noisy(x):
        with tracker.fork():
            outside_tracker = torch.nn.functional.dropout(x * weight, 0.5)
        calls.append(outside_tracker.detach())
        return torch.nn.functional.dropout(outside_tracker, 0.5)

    x = torch.ones(100, requires_grad=True)
    output = checkpoint(noisy, x, get_rng_state_tracker=lambda: tracker)
    after_forward = tracker.get_states()["model-parallel-rng"].clone()
    output.sum().backward()
    assert len(calls) == 2
    assert torch.equal(calls[0], calls[1])
    # d(output)/d(weight) is the mask that the output shows.
    assert torch.equal(weight.grad, output.detach())
    assert torch.equal(tracker.get_states()["model-parallel-rng"], after_forward)


def test_tracker_states_are_separate_and_named_once():
    tracker = CudaRNGStatesTracker()
    tracker.add("one", 1)
    tracker.add("two", 2)
    outside = torch.get_rng_state()
    with tracker.fork("one"):
        first = torch.rand(3)
    assert torch.equal(torch.get_rng_state(), outside)
    with tracker.fork("two"):
        other = torch.rand(3)
    with tracker.fork("one"):
        second = torch.rand(3)
    generator = torch.Generator().manual_seed(1)
    assert torch.equal(first, torch.rand(3, generator=generator))
    assert torch.equal(second, torch.rand(3, generator=generator))
    assert not torch.equal(first, other)
    with pytest.raises(ValueError, match="seed=1 is in use"):
        tracker.add("three", 1)
    with pytest.raises(ValueError, match="name='four'"), tracker.fork("four"):
        pass


def test_fp8_is_refused_only_when_it_is_on():
    for context in (fp8_autocast, fp8_model_init):
        with context(enabled=False):
            pass
        with (
            pytest.raises(RuntimeError, match="FP8 is not possible on the CPU"),
            context(enabled=True),
        ):
            pass


def test_offloading_changes_nothing():
    context, synchronise = get_cpu_offload_context(False, 2, 2, True, False)
    x = torch.ones(2)
    with context:
        assert synchronise(x) is x

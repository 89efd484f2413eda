"""Checks the layers on two processes against whole formulas; run by test_parallel_layers.py."""

import os
from types import SimpleNamespace

import torch
import torch.distributed as dist

from cpu_backend.gloo_collectives import _nothing_for_empty
from cpu_backend.stand_ins.transformer_engine.pytorch import LayerNormLinear, Linear
from cpu_backend.stand_ins.transformer_engine.pytorch.cross_entropy import parallel_cross_entropy

TP, SEQUENCE, HIDDEN, WIDE = 2, 6, 8, 12


def random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def whole_tensors(kind):
    tensors = {
        "x": random(SEQUENCE, 3, HIDDEN, seed=1),
        "gamma": random(HIDDEN, seed=2),
        "beta": random(HIDDEN, seed=3),
        "w1": random(WIDE, HIDDEN, seed=4),
        "b1": random(WIDE, seed=5),
        "w2": random(HIDDEN, WIDE, seed=6),
        "b2": random(HIDDEN, seed=7),
    }
    if kind == "RMSNorm":
        del tensors["beta"]
    return {name: tensor.requires_grad_() for name, tensor in tensors.items()}


def plain_block(t, kind):
    """norm -> linear -> square -> linear, in basic operations."""
    x = t["x"]
    centred = x if kind == "RMSNorm" else x - x.mean(-1, keepdim=True)
    normalised = centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-5) * t["gamma"]
    if kind == "LayerNorm":
        normalised = normalised + t["beta"]
    inner = normalised @ t["w1"].T + t["b1"]
    return normalised, (inner**2) @ t["w2"].T + t["b2"]


def cut(tensor, dimension, rank):
    return tensor.detach().chunk(TP, dim=dimension)[rank].clone()


def parallel_block(t, kind, rank, sequence_parallel, **first_options):
    options = {
        "tp_group": dist.group.WORLD,
        "tp_size": TP,
        "sequence_parallel": sequence_parallel,
    }
    first = LayerNormLinear(
        HIDDEN, WIDE, normalization=kind, parallel_mode="column", **options, **first_options
    )
    second = Linear(WIDE, HIDDEN, parallel_mode="row", **options)
    assert (first.out_features, second.in_features) == (WIDE // TP, WIDE // TP)
    parts = {
        first.layer_norm_weight: t["gamma"].detach(),
        first.weight: cut(t["w1"], 0, rank),
        first.bias: cut(t["b1"], 0, rank),
        second.weight: cut(t["w2"], 1, rank),
        second.bias: t["b2"].detach(),
    }
    if kind == "LayerNorm":
        parts[first.layer_norm_bias] = t["beta"].detach()
    for parameter, value in parts.items():
        parameter.data.copy_(value)
    return first, second


def summed(gradient):
    total = gradient.clone()
    dist.all_reduce(total)
    return total


def check_block(kind, sequence_parallel, rank):
    t = whole_tensors(kind)
    _, expected = plain_block(t, kind)
    probe = random(*expected.shape, seed=8)
    (expected * probe).sum().backward()
    first, second = parallel_block(t, kind, rank, sequence_parallel)

    x = t["x"].detach().clone()
    x = (cut(x, 0, rank) if sequence_parallel else x).requires_grad_()
    output = second(first(x) ** 2)
    here = (lambda whole: cut(whole, 0, rank)) if sequence_parallel else (lambda whole: whole)
    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(output, here(expected), **close)
    (output * here(probe)).sum().backward()

    torch.testing.assert_close(x.grad, here(t["x"].grad), **close)
    torch.testing.assert_close(first.weight.grad, cut(t["w1"].grad, 0, rank), **close)
    torch.testing.assert_close(first.bias.grad, cut(t["b1"].grad, 0, rank), **close)
    torch.testing.assert_close(second.weight.grad, cut(t["w2"].grad, 1, rank), **close)
    replicated = {first.layer_norm_weight: "gamma", second.bias: "b2"}
    if kind == "LayerNorm":
        replicated[first.layer_norm_bias] = "beta"
    for parameter, name in replicated.items():
        # The mark by which Megatron-Core sums a gradient over the group.
        assert parameter.sequence_parallel is sequence_parallel, name
        gradient = summed(parameter.grad) if parameter.sequence_parallel else parameter.grad
        torch.testing.assert_close(gradient, t[name].grad, **close)


def check_returned_norm(rank, gathered):
    """The normalised input that LoRA adapters take, whole or this process's part."""
    t = whole_tensors("RMSNorm")
    expected, _ = plain_block(t, "RMSNorm")
    probe = random(*expected.shape, seed=9)
    (expected * probe).sum().backward()
    first, _ = parallel_block(
        t,
        "RMSNorm",
        rank,
        sequence_parallel=True,
        return_bias=True,
        return_layernorm_output=True,
        return_layernorm_output_gathered=gathered,
    )
    x = cut(t["x"], 0, rank).requires_grad_()
    _, bias, normalised = first(x)
    assert bias is first.bias
    if gathered:
        torch.testing.assert_close(normalised, expected)
        # Every process uses all of it, so each one's loss is a share of the whole.
        (normalised * probe / TP).sum().backward()
    else:
        torch.testing.assert_close(normalised, cut(expected, 0, rank))
        (normalised * cut(probe, 0, rank)).sum().backward()
    torch.testing.assert_close(x.grad, cut(t["x"].grad, 0, rank), rtol=1e-4, atol=1e-4)


def check_weights_differ_by_the_tracker(rank):
    tracker = SimpleNamespace(fork=lambda: torch.random.fork_rng(devices=[]))
    torch.manual_seed(rank)
    layer = Linear(
        HIDDEN,
        WIDE,
        parallel_mode="column",
        tp_group=dist.group.WORLD,
        get_rng_state_tracker=lambda: tracker,
    )
    other = layer.weight.detach().clone()
    dist.broadcast(other, src=0)
    assert torch.equal(other, layer.weight) == (rank == 0)


def check_cross_entropy(rank):
    # Large enough for exp() to overflow if the maximum over both processes were not subtracted.
    whole = (random(5, 2, 10, seed=10) * 60 + 60).requires_grad_()
    target = torch.randint(10, (5, 2), generator=torch.Generator().manual_seed(11))
    target[0, 0] = -100
    for smoothing in (0.0, 0.2):
        logs = whole - whole.logsumexp(-1, keepdim=True)
        at_target = logs.gather(-1, target.clamp_min(0)[..., None]).squeeze(-1)
        expected = -(1 - smoothing) * at_target - smoothing * logs.mean(-1)
        expected = expected * (target >= 0)
        probe = random(5, 2, seed=12)
        want = torch.autograd.grad((expected * probe).sum(), whole)[0]
        part = cut(whole, 2, rank).requires_grad_()
        loss = parallel_cross_entropy(part, target, smoothing, False, dist.group.WORLD)
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-4)
        got = torch.autograd.grad((loss * probe).sum(), part)[0]
        torch.testing.assert_close(got, cut(want, 2, rank))


def check_an_empty_gather_of_one_rank_disturbs_nobody(rank):
    gather = _nothing_for_empty(dist.all_gather_into_tensor)
    if rank == 0:
        # As NeMo's progress printer does.
        gather(torch.zeros(0), torch.zeros(0))
    both = torch.zeros(2)
    gather(both, torch.tensor([float(rank + 1)]))
    assert both.tolist() == [1.0, 2.0]
    dist.all_reduce(both)
    assert both.tolist() == [2.0, 4.0]


def main():
    rank = int(os.environ["RANK"])
    meeting = f"file://{os.environ['MEETING_FILE']}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=TP)
    for kind in ("LayerNorm", "RMSNorm"):
        for sequence_parallel in (False, True):
            check_block(kind, sequence_parallel, rank)
    for gathered in (False, True):
        check_returned_norm(rank, gathered)
    check_weights_differ_by_the_tracker(rank)
    check_cross_entropy(rank)
    check_an_empty_gather_of_one_rank_disturbs_nobody(rank)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

"""FusedAdam, FusedSGD and the operations over many tensors."""

import copy

import pytest
import torch

from cpu_backend.stand_ins.transformer_engine.pytorch.optimizers import (
    FusedAdam,
    FusedSGD,
    multi_tensor_applier,
    multi_tensor_l2norm,
    multi_tensor_scale,
)

SETTINGS = {"lr": 3e-2, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.2}


def make_parameters(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = [(7, 5), (3,), (1,)]
    return [torch.nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in shapes]


def gradients(step, parameters):
    generator = torch.Generator().manual_seed(100 + step)
    return [torch.randn(p.shape, generator=generator).to(p.dtype) for p in parameters]


def run(optimizer, parameters, steps=5):
    for step in range(steps):
        for parameter, gradient in zip(parameters, gradients(step, parameters), strict=True):
            parameter.grad = gradient
        optimizer.step()


def plain_adam(parameters, steps, adam_w, correct):
    """The update of the paper (and, with adam_w, of 'Decoupled weight decay'), in fp64."""
    lr, (b1, b2), eps, decay = SETTINGS.values()
    values = [p.detach().double().clone() for p in parameters]
    m, v = [torch.zeros_like(x) for x in values], [torch.zeros_like(x) for x in values]
    for step in range(steps):
        for i, gradient in enumerate(gradients(step, parameters)):
            g = gradient.double() + (0 if adam_w else decay * values[i])
            m[i] = b1 * m[i] + (1 - b1) * g
            v[i] = b2 * v[i] + (1 - b2) * g * g
            c1, c2 = (1 - b1 ** (step + 1), 1 - b2 ** (step + 1)) if correct else (1.0, 1.0)
            update = (m[i] / c1) / ((v[i] / c2).sqrt() + eps)
            values[i] = values[i] - lr * (update + (decay * values[i] if adam_w else 0))
    return values


def assert_close(parameters, expected, **tolerance):
    for parameter, value in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.detach().double(), value.double(), **tolerance)


def test_adam_is_torch_adamw():
    ours, theirs = make_parameters(), make_parameters()
    run(FusedAdam(ours, **SETTINGS), ours)
    run(torch.optim.AdamW(theirs, **SETTINGS), theirs)
    assert_close(ours, [p.detach() for p in theirs], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("adam_w", [True, False])
@pytest.mark.parametrize("correct", [True, False])
def test_adam_is_the_formula_in_both_modes(adam_w, correct):
    parameters = make_parameters()
    expected = plain_adam(parameters, 5, adam_w, correct)
    optimizer = FusedAdam(parameters, **SETTINGS, adam_w_mode=adam_w, bias_correction=correct)
    run(optimizer, parameters)
    assert_close(parameters, expected, rtol=1e-5, atol=1e-6)


def test_the_step_is_the_groups_and_the_state_has_two_moments():
    parameters = make_parameters()
    optimizer = FusedAdam([{"params": parameters[:2]}, {"params": parameters[2:], "lr": 0.0}])
    before = parameters[2].detach().clone()
    run(optimizer, parameters, steps=2)
    assert [group["step"] for group in optimizer.param_groups] == [2, 2]
    assert set(optimizer.state[parameters[0]]) == {"exp_avg", "exp_avg_sq"}
    assert torch.equal(parameters[2], before)


def test_adam_goes_on_after_loading():
    whole, half = make_parameters(), make_parameters()
    run(FusedAdam(whole, **SETTINGS), whole, steps=5)
    first = FusedAdam(half, **SETTINGS)
    run(first, half, steps=3)
    again = FusedAdam(half, **SETTINGS)
    again.load_state_dict(copy.deepcopy(first.state_dict()))
    for step in (3, 4):
        for parameter, gradient in zip(half, gradients(step, half), strict=True):
            parameter.grad = gradient
        again.step()
    assert_close(half, [p.detach() for p in whole], rtol=0.0, atol=0.0)


def test_bf16_parameters_have_fp32_masters_and_moments_that_survive_loading():
    parameters = make_parameters(torch.bfloat16)
    expected = plain_adam(parameters, 5, True, True)
    optimizer = FusedAdam(parameters, **SETTINGS, master_weights=True, use_decoupled_grad=True)
    for step in range(5):
        for parameter, gradient in zip(parameters, gradients(step, parameters), strict=True):
            parameter.decoupled_grad = gradient.float()
        optimizer.step()
        if step == 2:
            state = copy.deepcopy(optimizer.state_dict())
            optimizer = FusedAdam(
                parameters, **SETTINGS, master_weights=True, use_decoupled_grad=True
            )
            optimizer.load_state_dict(state)
    for parameter, value in zip(parameters, expected, strict=True):
        master = optimizer.get_unscaled_state(parameter, "master_param")
        torch.testing.assert_close(master.double(), value, rtol=1e-5, atol=1e-5)
        assert torch.equal(parameter, master.to(torch.bfloat16))
    optimizer.zero_grad()
    assert parameters[0].decoupled_grad is None
    optimizer.set_scaled_state(parameters[0], "exp_avg", torch.ones(7, 5))
    assert optimizer.state[parameters[0]]["exp_avg"].eq(1).all()


def test_moments_can_be_kept_in_sixteen_bits():
    parameters = make_parameters()
    expected = plain_adam(parameters, 5, True, True)
    optimizer = FusedAdam(parameters, **SETTINGS, exp_avg_dtype=torch.bfloat16)
    run(optimizer, parameters)
    assert optimizer.state[parameters[0]]["exp_avg"].dtype == torch.bfloat16
    assert_close(parameters, expected, rtol=1e-2, atol=1e-2)
    with pytest.raises(ValueError, match="exp_avg_dtype=torch.uint8"):
        FusedAdam(parameters, exp_avg_dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="amsgrad"):
        FusedAdam(parameters, amsgrad=True)


def test_parameters_without_a_gradient_stay():
    parameters = make_parameters()
    before = [p.detach().clone() for p in parameters]
    parameters[0].grad = torch.ones(7, 5)
    FusedAdam(parameters, **SETTINGS).step()
    assert not torch.equal(parameters[0], before[0])
    assert torch.equal(parameters[1], before[1])


def test_sgd_with_momentum():
    parameters = make_parameters()
    values = [p.detach().clone() for p in parameters]
    momentum = [torch.zeros_like(x) for x in values]
    for step in range(3):
        for i, gradient in enumerate(gradients(step, parameters)):
            momentum[i] = 0.9 * momentum[i] + gradient + 0.01 * values[i]
            values[i] = values[i] - 0.1 * momentum[i]
    run(FusedSGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01), parameters, steps=3)
    assert_close(parameters, values, rtol=1e-5, atol=1e-6)
    with pytest.raises(NotImplementedError, match="wd_after_momentum"):
        FusedSGD(parameters, wd_after_momentum=True)


def test_l2norm_over_many_tensors_is_exact_for_long_ones():
    generator = torch.Generator().manual_seed(1)
    tensors = [torch.randn(n, generator=generator) for n in (3_000_001, 5, 4096, 0)]
    tensors.append(torch.randn(30, 7, generator=generator).t().to(torch.bfloat16))
    expected = torch.stack([t.double().pow(2).sum().sqrt() for t in tensors])
    flag = torch.zeros(1, dtype=torch.int)
    total, each = multi_tensor_applier(multi_tensor_l2norm, flag, [tensors], True)
    assert total.shape == (1,)
    torch.testing.assert_close(each.double(), expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(total[0].double(), expected.norm(), rtol=1e-6, atol=0.0)


def test_scaling_in_place_and_into_other_types():
    flag = torch.zeros(1, dtype=torch.int)
    source = torch.tensor([1.0, -4.0])
    target = torch.empty(2, dtype=torch.bfloat16)
    multi_tensor_applier(multi_tensor_scale, flag, [[source], [target]], 0.5)
    assert target.tolist() == [0.5, -2.0]
    multi_tensor_applier(multi_tensor_scale, flag, [[source], [source]], 0.25)
    assert source.tolist() == [0.25, -1.0]
    assert flag.item() == 0
    multi_tensor_applier(multi_tensor_scale, flag, [[torch.tensor([torch.inf])], [target[:1]]], 1.0)
    assert flag.item() == 1

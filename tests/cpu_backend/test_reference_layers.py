"""Linear, LayerNormLinear and the norms against formulas of basic tensor operations."""

import pytest
import torch

from cpu_backend.stand_ins.transformer_engine.pytorch import (
    GroupedLinear,
    LayerNorm,
    LayerNormLinear,
    LayerNormMLP,
    Linear,
    RMSNorm,
)

EPSILON = 1e-3


def plain_norm(x, kind, weight, bias, zero_centered):
    gamma = weight + 1 if zero_centered else weight
    if kind == "RMSNorm":
        return x / torch.sqrt((x * x).mean(dim=-1, keepdim=True) + EPSILON) * gamma
    centred = x - x.mean(dim=-1, keepdim=True)
    return centred / torch.sqrt((centred**2).mean(dim=-1, keepdim=True) + EPSILON) * gamma + bias


def randomise(module):
    generator = torch.Generator().manual_seed(3)
    for parameter in module.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator))


def assert_same_gradients(output, expected, tensors):
    probe = torch.randn(expected.shape, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(output, expected)
    got = torch.autograd.grad((output * probe).sum(), tensors)
    want = torch.autograd.grad((expected * probe).sum(), tensors)
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.fixture
def x():
    return torch.randn(5, 2, 8, generator=torch.Generator().manual_seed(1), requires_grad=True)


@pytest.mark.parametrize("bias", [True, False])
def test_linear_multiplies_and_adds(x, bias):
    layer = Linear(8, 6, bias=bias)
    randomise(layer)
    expected = (x.unsqueeze(-2) * layer.weight).sum(dim=-1)
    if bias:
        expected = expected + layer.bias
    assert_same_gradients(layer(x), expected, [x, *layer.parameters()])


def test_linear_returns_the_bias_instead_of_adding_it(x):
    layer = Linear(8, 6, return_bias=True)
    randomise(layer)
    output, bias = layer(x, is_first_microbatch=True)
    assert bias is layer.bias
    torch.testing.assert_close(output, torch.einsum("sbi,oi->sbo", x, layer.weight))


def test_a_linear_without_bias_has_an_empty_one_that_is_not_saved():
    layer = Linear(8, 6, bias=False)
    assert layer.bias.numel() == 0
    assert list(layer.state_dict()) == ["weight", "_extra_state"]


@pytest.mark.parametrize("kind", ["LayerNorm", "RMSNorm"])
@pytest.mark.parametrize("zero_centered", [False, True])
def test_norms(x, kind, zero_centered):
    norm_class = LayerNorm if kind == "LayerNorm" else RMSNorm
    norm = norm_class(8, eps=EPSILON, zero_centered_gamma=zero_centered)
    torch.testing.assert_close(
        norm(x), plain_norm(x, kind, torch.ones(8), torch.zeros(8), zero_centered=False)
    )
    randomise(norm)
    expected = plain_norm(x, kind, norm.weight, getattr(norm, "bias", None), zero_centered)
    assert_same_gradients(norm(x), expected, [x, *norm.parameters()])


@pytest.mark.parametrize("kind", ["LayerNorm", "RMSNorm"])
@pytest.mark.parametrize("zero_centered", [False, True])
def test_layer_norm_linear(x, kind, zero_centered):
    layer = LayerNormLinear(
        8,
        6,
        eps=EPSILON,
        normalization=kind,
        zero_centered_gamma=zero_centered,
        return_layernorm_output=True,
    )
    randomise(layer)
    output, normalised = layer(x)
    expected_norm = plain_norm(
        x, kind, layer.layer_norm_weight, layer.layer_norm_bias, zero_centered
    )
    torch.testing.assert_close(normalised, expected_norm)
    expected = torch.einsum("sbi,oi->sbo", expected_norm, layer.weight) + layer.bias
    assert_same_gradients(output, expected, [x, *layer.parameters()])


def test_bf16_norm_keeps_its_statistics_in_fp32():
    x = torch.randn(4, 64, dtype=torch.bfloat16, generator=torch.Generator().manual_seed(2)) * 100
    norm = RMSNorm(64, params_dtype=torch.bfloat16, eps=EPSILON)
    output = norm(x)
    assert output.dtype == torch.bfloat16
    wanted = plain_norm(x.double(), "RMSNorm", torch.ones(64), None, zero_centered=False)
    # Half a unit in the last place: only the result is rounded.
    torch.testing.assert_close(output.double(), wanted, rtol=2**-8, atol=0.0)


def test_names_order_and_attributes_are_those_that_megatron_core_reads():
    layer = LayerNormLinear(8, 6, parallel_mode="column")
    names = ["layer_norm_weight", "layer_norm_bias", "weight", "bias"]
    assert [name for name, _ in layer.named_parameters()] == names
    assert list(layer.state_dict()) == [*names, "_extra_state"]
    for parameter in (layer.weight, layer.bias):
        assert (parameter.tensor_model_parallel, parameter.partition_dim) == (True, 0)
        assert parameter.partition_stride == 1
    # One process, so its sequence is whole: nothing to sum.
    assert layer.layer_norm_weight.sequence_parallel is False
    row = Linear(8, 6, parallel_mode="row")
    assert (row.weight.partition_dim, row.bias.sequence_parallel) == (1, False)
    assert not hasattr(row.bias, "tensor_model_parallel")
    assert not hasattr(Linear(8, 6).weight, "tensor_model_parallel")


def test_weights_are_drawn_from_the_tracker_and_by_the_given_method():
    entered = []

    class Tracker:
        def fork(self, name="default"):
            entered.append(name)
            return torch.random.fork_rng(devices=[])

    def init(weight):
        weight.fill_(7.0)

    layer = Linear(8, 6, init_method=init, get_rng_state_tracker=Tracker)
    assert torch.equal(layer.weight, torch.full((6, 8), 7.0))
    assert torch.equal(layer.bias, torch.zeros(6))
    Linear(8, 6, init_method=init, get_rng_state_tracker=Tracker, rng_tracker_name="expert")
    assert entered == ["default", "expert"]


def test_layers_on_the_meta_device_are_initialised_later():
    layer = LayerNormLinear(8, 6, device="meta", parallel_mode="column", zero_centered_gamma=True)
    assert {parameter.device.type for parameter in layer.parameters()} == {"meta"}
    layer.reset_parameters()
    assert {parameter.device.type for parameter in layer.parameters()} == {"cpu"}
    assert layer.weight.partition_dim == 0
    assert torch.equal(layer.layer_norm_weight, torch.zeros(8))
    assert 0.01 < layer.weight.std().item() < 0.05


def test_a_foreign_extra_state_is_kept_unread():
    layer = Linear(8, 6)
    assert layer.state_dict()["_extra_state"].numel() == 0
    state = layer.state_dict()
    state["_extra_state"] = torch.tensor([1, 2, 3], dtype=torch.uint8)
    layer.load_state_dict(state)
    assert layer.state_dict()["_extra_state"].tolist() == [1, 2, 3]


def test_wrong_arguments_are_refused():
    with pytest.raises(TypeError, match="no_such_argument"):
        Linear(8, 6, no_such_argument=1)
    with pytest.raises(ValueError, match="parallel_mode='sideways'"):
        Linear(8, 6, parallel_mode="sideways")
    with pytest.raises(ValueError, match="divisible by tp_size=4"):
        Linear(6, 8, parallel_mode="row", tp_size=4)
    with pytest.raises(ValueError, match="normalization='BatchNorm'"):
        LayerNormLinear(8, 6, normalization="BatchNorm")
    with pytest.raises(NotImplementedError, match="moe_grouped_gemm=False"):
        GroupedLinear(2, 8, 6)
    with pytest.raises(NotImplementedError, match="use LayerNormLinear and Linear"):
        LayerNormMLP(8, 16)
    Linear(8, 6, ub_overlap_ag=True, fuse_wgrad_accumulation=True)

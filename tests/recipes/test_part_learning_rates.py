"""Groups of parameters with the learning rate of their part."""

import pytest
import torch

pytestmark = pytest.mark.usefixtures("nemo")


def group(params, wd_mult, lr_mult=1.0):
    return {
        "params": params,
        "wd_mult": wd_mult,
        "lr_mult": lr_mult,
        "is_expert_parallel": False,
        "is_decoupled_lr": False,
    }


def test_groups_are_divided_by_part():
    from recipes.part_learning_rates import divide

    weights = [torch.nn.Parameter(torch.zeros(2)) for _ in range(5)]
    language, vision, projector, bias, other = weights
    parts = {
        id(vision): "vision_model",
        id(projector): "vision_projection",
        id(bias): "vision_model",
    }
    groups = [group([language, vision, projector, other], 1.0), group([bias], 0.0)]
    found = divide(groups, parts, {"vision_model": 0.5})
    assert [(one["wd_mult"], one["lr_mult"]) for one in found] == [
        (1.0, 1.0),
        (1.0, 0.5),
        (0.0, 1.0),
        (0.0, 0.5),
    ]
    ids = [[id(parameter) for parameter in one["params"]] for one in found]
    assert ids == [[id(language), id(projector), id(other)], [id(vision)], [], [id(bias)]]
    # Without rates of their own, nothing changes.
    assert divide(groups, parts, {}) == groups


def test_equal_rates_make_one_group():
    """Groups are found again in a checkpoint by their multipliers, which must be unique."""
    from recipes.part_learning_rates import divide

    language, vision, projector = (torch.nn.Parameter(torch.zeros(2)) for _ in range(3))
    parts = {id(vision): "vision_model", id(projector): "vision_projection"}
    found = divide(
        [group([language, vision, projector], 1.0)],
        parts,
        {"vision_model": 0.5, "vision_projection": 0.5},
    )
    assert [one["lr_mult"] for one in found] == [1.0, 0.5]
    assert [id(one) for one in found[1]["params"]] == [id(vision), id(projector)]


@pytest.mark.parametrize("name", ["vision_lr", "projector_lr"])
def test_rates_are_positive(name):
    from megatron.core.optimizer import OptimizerConfig

    from recipes.part_learning_rates import PartLearningRates

    with pytest.raises(ValueError, match=rf"optim\.{name}: 0.0 is not allowed"):
        PartLearningRates(OptimizerConfig(lr=1e-4), **{name: 0.0})

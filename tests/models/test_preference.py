"""The loss of preferences against its formula, computed by hand."""

import math

import pytest
import torch

pytestmark = pytest.mark.usefixtures("single_process")

BETA = 0.3
# Cross entropies of three pairs; the third is a filler.
LOSSES = torch.tensor(
    [
        [0.5, 1.0, 2.0, 9.0],
        [3.0, 0.25, 9.0, 9.0],
        [1.5, 9.0, 9.0, 9.0],
        [0.75, 0.5, 0.25, 0.125],
        [9.0, 9.0, 9.0, 9.0],
        [9.0, 9.0, 9.0, 9.0],
    ]
)
MASK = torch.tensor(
    [[0, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]]
).float()
REFERENCE = torch.tensor([[-2.0, -3.0], [-2.5, -1.0], [0.0, 0.0]])
# By hand: sums of the log probabilities of the learnt tokens.
CHOSEN, REJECTED = (-3.0, -1.5), (-3.25, -1.625)
SFT = (1.5, 1.5)
MARGINS = (BETA * (0.25 - 1.0), BETA * (0.125 + 1.5))


def softplus(value):
    return math.log1p(math.exp(value))


def batch_of_rows():
    return {
        "loss_mask": MASK,
        "answer_sequences": torch.arange(6),
        "reference_log_probabilities": REFERENCE,
    }


def reduced(objective, batch, losses):
    from models.preference import PreferenceLossReduction

    reduction = PreferenceLossReduction(objective)
    loss, pairs, kept = reduction.forward(batch, (losses, batch["loss_mask"]))
    mean = reduction.reduce([kept])
    assert float(mean) == pytest.approx(float(loss) / int(pairs), rel=1e-6)
    return float(loss), int(pairs), reduction.sums.tolist()


def test_loss_and_figures_of_a_batch():
    from models.preference import PreferenceObjective

    objective = PreferenceObjective(beta=BETA, sft_loss_weight=0.5)
    loss, pairs, sums = reduced(objective, batch_of_rows(), LOSSES)
    preference = sum(softplus(-margin) for margin in MARGINS)
    assert pairs == 2
    assert sums == pytest.approx([preference, sum(SFT), 1.0, sum(MARGINS), 2.0], rel=1e-6)
    assert loss == pytest.approx(preference + 0.5 * sum(SFT), rel=1e-6)


def test_label_smoothing_and_no_reference():
    from models.preference import PreferenceObjective

    objective = PreferenceObjective(beta=BETA, label_smoothing=0.1, reference_free=True)
    loss, _, sums = reduced(objective, batch_of_rows(), LOSSES)
    margins = [BETA * (one - two) for one, two in zip(CHOSEN, REJECTED, strict=True)]
    wanted = sum(0.9 * softplus(-margin) + 0.1 * softplus(margin) for margin in margins)
    assert loss == pytest.approx(wanted, rel=1e-6)
    assert sums[3] == pytest.approx(sum(margins), rel=1e-6)
    assert sums[2] == 2


def test_packed_rows_give_the_same():
    from models.preference import PreferenceObjective, answer_log_probabilities

    # The same answers one after the other, with a sequence between them that belongs to nobody.
    lengths = [3, 2, 4, 1, 4]
    pieces = [LOSSES[0, :3], LOSSES[1, :2], torch.full((4,), 9.0), LOSSES[2, :1], LOSSES[3]]
    masks = [MASK[0, :3], MASK[1, :2], torch.zeros(4), MASK[2, :1], MASK[3]]
    batch = {
        "loss_mask": torch.cat(masks)[None],
        "cu_seqlens": torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32),
        "answer_sequences": torch.tensor([0, 1, 3, 4]),
        "reference_log_probabilities": REFERENCE[:2],
    }
    losses = torch.cat(pieces)[None]
    values, tokens = answer_log_probabilities(losses, batch)
    assert values.tolist() == [[CHOSEN[0], REJECTED[0]], [CHOSEN[1], REJECTED[1]]]
    assert tokens.tolist() == [[2, 2], [1, 4]]
    objective = PreferenceObjective(beta=BETA)
    found, wanted = (
        reduced(objective, *one) for one in ((batch, losses), (batch_of_rows(), LOSSES))
    )
    assert found[:2] == pytest.approx(wanted[:2])
    assert found[2] == pytest.approx(wanted[2])


def test_the_gradient_is_that_of_the_formula():
    from models.preference import PreferenceLossReduction, PreferenceObjective

    losses = LOSSES.clone().requires_grad_()
    reduction = PreferenceLossReduction(PreferenceObjective(beta=BETA))
    loss, _, _ = reduction.forward(batch_of_rows(), (losses, MASK))
    loss.backward()
    # d/dm of -log sigmoid(m) is -sigmoid(-m), and m falls by beta with each chosen loss.
    pushes = [BETA / (1 + math.exp(margin)) for margin in MARGINS]
    wanted = MASK * torch.tensor([pushes[0], -pushes[0], pushes[1], -pushes[1], 0, 0])[:, None]
    torch.testing.assert_close(losses.grad, wanted)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"beta": 0.0}, "objective.beta: 0.0 .* above 0"),
        ({"label_smoothing": 0.5}, "objective.label_smoothing: 0.5 .* below 0.5"),
        ({"sft_loss_weight": -1.0}, "objective.sft_loss_weight: .*-1.0.* below 0"),
        ({"preference_loss_weight": 0.0}, "one is above"),
    ],
)
def test_values_that_are_not_allowed(changes, words, nemo):
    from models.preference import PreferenceObjective

    with pytest.raises(ValueError, match=words):
        PreferenceObjective(**changes)

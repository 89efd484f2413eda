"""Which steps are bad. What follows is in test_faults.py."""

import math
from types import SimpleNamespace

import pytest

pytestmark = pytest.mark.usefixtures("nemo")


@pytest.fixture
def judge(monkeypatch, nemo):
    """Asks about the next step of one process, whose log is a list."""
    from recipes import bad_steps

    monkeypatch.setattr(bad_steps, "_agree", lambda loss, grad_norm, device: (loss, grad_norm))
    monkeypatch.setattr(
        bad_steps.BadSteps, "_write", lambda self, trainer, module, fault, action: None
    )

    def judge(rules, losses, first_step=0):
        module = SimpleNamespace(device="cpu")
        refused = []
        for step, loss in enumerate(losses, first_step):
            trainer = SimpleNamespace(
                global_step=step, strategy=SimpleNamespace(checkpoint_io=None)
            )
            if rules._refuses(trainer, module, loss, 1.0):
                refused.append(step)
            assert module.step_is_skipped == (step in refused)
        return refused

    return judge


def rules(**options):
    from recipes.bad_steps import BadSteps

    return BadSteps(**options)


def test_numbers_that_are_none(judge):
    assert judge(rules(), [5.0, math.nan, 1e9, math.inf, 4.0]) == [1, 3]
    assert rules().find_fault(2.0, math.nan) == "the norm of the gradients is nan"
    assert rules().find_fault(2.0, 1e9) is None


def test_a_spike_is_measured_by_the_median_of_good_losses(judge):
    # The median of 1, 2, 3, 4 is 2.5; bad losses do not count.
    losses = [100.0, 4.0, 3.0, 2.0, 1.0, 7.6, 7.6, 7.4]
    assert judge(rules(spike_factor=3.0, window_steps=4), losses) == [5, 6]
    assert judge(rules(spike_factor=3.0, window_steps=16), losses) == []
    assert judge(rules(), losses) == []


def test_a_resumed_run_judges_alike(judge):
    losses = [3.0, 3.0, 2.0, 2.0, 11.0, 2.0, math.nan, math.nan]
    options = {"spike_factor": 4.0, "window_steps": 4, "most_in_a_row": 2}
    whole = rules(**options)
    assert judge(whole, losses) == [4, 6, 7]
    for cut in range(1, len(losses)):
        first, second = rules(**options), rules(**options)
        found = judge(first, losses[:cut])
        second.load_state_dict(first.state_dict())
        assert found + judge(second, losses[cut:], cut) == [4, 6, 7]
        assert second.state_dict() == whole.state_dict()
        with pytest.raises(RuntimeError, match="3 bad steps in a row, the last one 8"):
            judge(second, [math.nan], 8)


def test_a_step_is_tried_again_once(judge):
    from recipes.bad_steps import ROLLED_BACK_STATUS

    first = rules(action="roll_back")
    with pytest.raises(SystemExit) as stopped:
        judge(first, [2.0, math.nan])
    assert stopped.value.code == ROLLED_BACK_STATUS == 76
    second = rules(action="roll_back")
    second._tried = {1}
    assert judge(second, [2.0, math.nan, 2.0]) == [1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"action": "stop"}, "bad_steps.action: 'stop' is unknown; allowed are skip, roll_back"),
        ({"spike_factor": 1.0}, "bad_steps.spike_factor: 1.0 is not more than 1"),
        ({"spike_factor": math.nan}, "bad_steps.spike_factor: nan is not more than 1"),
        ({"window_steps": 0}, "bad_steps.window_steps: 0 is less than 1"),
        ({"most_in_a_row": 0}, "bad_steps.most_in_a_row: 0 is less than 1"),
    ],
)
def test_values_that_are_not_allowed(options, message):
    with pytest.raises(ValueError, match=message):
        rules(**options)

import json

import pytest
from PIL import Image

from evaluation.exact_match import ExactMatch, Row
from launch.quickstart.__main__ import main, missed_bounds
from launch.quickstart.evaluate import make_figures
from launch.quickstart.families import FAMILIES
from launch.quickstart.phases import Phases
from launch.quickstart.shared_phases import describe_step
from launch.quickstart.workspace import Phase, PhaseFailedError, QuickstartFamily, Workspace
from recipes.steps_file import STEPS_FILE


class SilentConsole:
    def __init__(self):
        self.lines = []

    def line(self, text):
        self.lines.append(text)


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """The quickstart sets these for its own process when they are not set."""
    for name in ("OMP_NUM_THREADS", "NEMORUN_HOME", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "1")


def row(folder, name, answer, truth):
    Image.new("L", (56, 56)).save(folder / f"{name}.png")
    images = (str(folder / f"{name}.png"),)
    return Row(name, "<image>\n何?", answer, truth, answer == truth, images)


def family(tmp_path, done, name="nano", fails=()):
    """A family whose phases write their names down instead of working."""

    def work_of(phase):
        def work(workspace):
            done.append(phase)
            if phase in fails:
                raise ValueError("broken")
            if phase == "sft":
                steps_file = workspace.folder / "sft" / STEPS_FILE
                steps_file.parent.mkdir(parents=True)
                steps_file.write_text(
                    "".join(
                        json.dumps({"step": step, "loss": loss, "seconds": 0.1}) + "\n"
                        for step, loss in enumerate((3.0, 1.5))
                    )
                )
            return {
                "verify": {"logit_differences": {"one": 1e-6, "two": 3e-6}, "tensors": 7},
                "evaluate": make_figures(
                    {"single": ExactMatch((row(tmp_path, "a", "3", "3"),), 1.0)}, {"single": 0.1}
                ),
                "compare": {"megatron_equal_answers": 1.0},
            }.get(phase)

        return work

    return QuickstartFamily(
        name=name,
        title="Nano",
        phases=tuple(
            Phase(
                name=phase,
                description=f"does {phase}",
                work=work_of(phase),
                reported=phase in ("evaluate", "compare"),
            )
            for phase in ("sft", "verify", "evaluate", "compare")
        ),
        stages=("sft",),
        wanted={"single_exact_match": 0.95},
    )


def test_phases_run_once_in_order_and_are_reported(tmp_path):
    done, console, folder = [], SilentConsole(), tmp_path / "out"
    figures, path = Phases(family(tmp_path, done), folder, console).run()
    assert done == ["sft", "verify", "evaluate", "compare"]
    assert path == folder / "report.html"
    seconds, peak = figures.pop("seconds"), figures.pop("peak_rss_gb")
    assert seconds > 0
    assert peak > 0
    assert figures == {
        "single_exact_match": 1.0,
        "single_shuffled_exact_match": 0.1,
        "single_questions": 1,
        "megatron_equal_answers": 1.0,
        "max_logit_difference": 3e-6,
    }
    report = json.loads((folder / "report.json").read_text())
    assert list(report.pop("seconds_by_phase")) == done
    assert report == figures | {"seconds": seconds, "peak_rss_gb": peak}
    page = path.read_text(encoding="utf-8")
    assert "sft: 3.000 to 1.500" in page
    assert "何?" in page
    again, _ = Phases(family(tmp_path, done), folder, console).run()
    assert len(done) == 4  # nothing was done twice
    assert again["seconds"] == seconds
    assert again["peak_rss_gb"] >= peak
    assert "[verify] done before in 0 s" in console.lines


def test_a_failed_phase_is_done_again(tmp_path):
    done, console, folder = [], SilentConsole(), tmp_path / "out"
    with pytest.raises(PhaseFailedError, match=r"^verify failed \(broken\); its log is .*verify"):
        Phases(family(tmp_path, done, fails=["verify"]), folder, console).run()
    assert not (folder / "report.json").exists()
    Phases(family(tmp_path, done), folder, console).run()
    assert done == ["sft", "verify", "verify", "evaluate", "compare"]


def test_a_folder_of_another_family_is_refused(tmp_path, capfd):
    Phases(family(tmp_path, []), tmp_path / "out", SilentConsole()).run()
    with pytest.raises(ValueError, match="holds a quickstart of nano; give another folder"):
        Phases(family(tmp_path, [], name="other"), tmp_path / "out", SilentConsole())
    assert main(["--family", "mllama", "--out", str(tmp_path / "out")]) == 2
    (message,) = capfd.readouterr().err.splitlines()
    assert message.startswith("error: out: ")


def test_a_state_without_a_family_is_of_nvila(tmp_path):
    (tmp_path / "state.json").write_text('{"data": {"seconds": 1, "figures": {}}}')
    Phases(FAMILIES["nvila"], tmp_path, SilentConsole())
    with pytest.raises(ValueError, match="a quickstart of nvila"):
        Phases(FAMILIES["mllama"], tmp_path, SilentConsole())


def test_unknown_family(capsys):
    assert main(["--family", "vila"]) == 2
    message = "error: family: 'vila' is unknown; allowed is nvila or mllama or llava or llava_jp.\n"
    assert capsys.readouterr().err == message


def test_a_folder_of_something_else_is_refused(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("words")
    assert main(["--family", "mllama", "--out", str(tmp_path), "--fresh"]) == 2
    assert "is not empty and holds no quickstart" in capsys.readouterr().err
    assert (tmp_path / "thesis.txt").exists()


def test_families():
    names = {name: [phase.name for phase in family.phases] for name, family in FAMILIES.items()}
    assert names == {
        "nvila": ["data", "parents", "assemble", "align", "pretrain", "sft"]
        + ["export", "verify", "evaluate"],
        "mllama": ["data", "parent", "import", "sft", "export", "verify", "evaluate", "compare"],
        **dict.fromkeys(
            ("llava", "llava_jp"),
            ["data", "parents", "assemble", "pretrain", "sft", "export", "verify", "evaluate"],
        ),
    }
    for family in FAMILIES.values():
        assert set(family.stages) <= set(names[family.name])
        assert family.wanted["single_exact_match"] == 0.95
    assert FAMILIES["nvila"].wanted["strip3_exact_match"] == 0.85
    assert FAMILIES["mllama"].wanted["megatron_equal_answers"] == 1.0


def test_missed_bounds():
    figures = {"a": 0.949, "b": 0.85, "c": 0}
    assert missed_bounds(figures, {"a": 0.95, "b": 0.85}) == ["a is 0.949, below 0.95."]


def test_figures_of_the_questions(tmp_path):
    rows = tuple(row(tmp_path, str(n), str(n), "3") for n in range(8))
    figures = make_figures({"single": ExactMatch(rows, 0.125)}, {"single": 0.5})
    assert [shown["id"] for shown in figures.pop("shown")] == list("012345")
    assert figures == {
        "single_exact_match": 0.125,
        "single_shuffled_exact_match": 0.5,
        "single_questions": 8,
    }


def test_the_last_step_is_described(tmp_path):
    steps = tmp_path / "steps.jsonl"
    assert describe_step(steps, 9) is None
    steps.write_text("")
    assert describe_step(steps, 9) is None
    rows = [{"step": step, "loss": 2.0 / (step + 1), "seconds": 0.25} for step in range(2)]
    steps.write_text("".join(json.dumps(one) + "\n" for one in rows))
    assert describe_step(steps, 9) == "  step 2/9  loss 1.0000  0.25 s/step"
    with steps.open("a") as file:
        file.write('{"step": 2, "lo')
    assert describe_step(steps, 9) is None


def test_clear_removes_what_was_left(tmp_path):
    workspace = Workspace(tmp_path, SilentConsole())
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "old").write_text("x")
    assert workspace.clear("hf") == tmp_path / "hf"
    assert not (tmp_path / "hf").exists()
    assert workspace.digits.train_singles == tmp_path / "data" / "train_singles.jsonl"

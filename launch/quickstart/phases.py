"""The phases of the quickstart, each done once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from launch.quickstart.console import Console, output_to
from launch.quickstart.digits import digit_files, write_digits
from launch.quickstart.memory import PeakMemory
from launch.quickstart.report import Shown, write_report
from recipes.steps_file import STEPS_FILE, read_steps

ROOT = Path("runs") / "quickstart"
STATE_FILE = "state.json"
STAGES = ("align", "pretrain", "sft")
_TRAIN_PATHS = {
    "align": ("train_singles",),
    "pretrain": ("train_singles",),
    # 1, 2, 3 and 4 digits equally: a quarter singles, the strips hold the other three lengths.
    "sft": ("train_singles", "train_strips"),
}
_WEIGHTS = {"sft": [0.25, 0.75]}


class PhaseFailedError(RuntimeError):
    """A phase did not succeed; the message names its log."""


class Phases:
    """Runs what is missing in a folder.

    Args:
        folder: everything goes here (absolute).
        console: where progress is shown.
    """

    def __init__(self, folder: Path, console: Console) -> None:
        self.folder = folder
        self.console = console
        self._state_file = folder / STATE_FILE
        self._state: dict[str, Any] = {}
        if self._state_file.is_file():
            self._state = json.loads(self._state_file.read_text(encoding="utf-8"))

    def run(self) -> tuple[dict[str, Any], Path]:
        """Run all phases.

        Returns:
            The figures of the report and its path.

        Raises:
            PhaseFailedError: a phase failed.
        """
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        os.environ.setdefault("NEMORUN_HOME", str(self.folder / "nemo_run"))
        # Nothing here may ask a hub: the models and the data are made on this machine.
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write_state()
        with PeakMemory() as memory:
            self._phase("data", "handwritten digits as LLaVA JSONL", self._data)
            self._phase("parents", "SigLIP and Qwen2.5 directories, random weights", self._parents)
            self._phase("assemble", "parents + fresh projector -> NeMo checkpoint", self._assemble)
            for stage in STAGES:
                self._phase(stage, f"stage {stage} through NeMo-Run", partial(self._train, stage))
            self._phase("export", "NeMo checkpoint -> Hugging Face directory", self._export)
            self._phase("verify", "bits and logits of both sides", self._verify)
            self._phase("evaluate", "the exported model reads held-out images", self._evaluate)
        return self._report(memory.peak_bytes)

    def _phase(
        self, name: str, description: str, work: Callable[[], dict[str, Any] | None]
    ) -> None:
        if name in self._state:
            self.console.line(f"[{name}] done before in {self._state[name]['seconds']:.0f} s")
            return
        self.console.line(f"[{name}] {description}")
        log, started = self.folder / "logs" / f"{name}.log", time.perf_counter()
        try:
            with output_to(log):
                figures = work() or {}
        except Exception as error:
            raise PhaseFailedError(f"{name} failed ({error}); its log is {log}") from error
        seconds = time.perf_counter() - started
        self._state[name] = {"seconds": seconds, "figures": figures}
        self._write_state()
        self.console.line(f"[{name}] {seconds:.0f} s")

    def _write_state(self) -> None:
        partial = self._state_file.with_suffix(".partial")
        partial.write_text(json.dumps(self._state, indent=2) + "\n", encoding="utf-8")
        partial.replace(self._state_file)

    def _clear(self, name: str) -> Path:
        """Return a folder after removing what an interrupted run left in it."""
        folder = self.folder / name
        if folder.exists():
            shutil.rmtree(folder)
        return folder

    def _data(self) -> None:
        write_digits(self._clear("data"))

    def _parents(self) -> None:
        from launch.quickstart.parents import train_tokenizer, write_qwen2, write_siglip

        parents = self._clear("parents")
        write_siglip(parents / "siglip")
        write_qwen2(parents / "qwen2", train_tokenizer())

    def _assemble(self) -> dict[str, Any]:
        from launch import backend

        backend.activate(cpu=True)
        from converters.assemble import assemble

        parents = self.folder / "parents"
        return assemble(
            parents / "qwen2", parents / "siglip", self._clear("assembled"), max_tiles=4
        )

    def _train(self, stage: str) -> dict[str, Any]:
        from launch import backend

        backend.activate(cpu=True)
        from launch.train import run_recipe
        from recipes.nvila.recipe import finetune_recipe

        recipe = finetune_recipe(dir=str(self.folder), stage=stage, size="nano")
        files = digit_files(self.folder / "data")
        recipe.data.train_paths = [str(getattr(files, name)) for name in _TRAIN_PATHS[stage]]
        recipe.data.weights = _WEIGHTS.get(stage)
        recipe.data.validation_paths = [str(files.validation_strips)]
        recipe.data.image_folder = str(files.images)
        steps_file = self.folder / stage / STEPS_FILE
        with self.console.watching(lambda: _progress(steps_file, recipe.trainer.max_steps)):
            result = run_recipe(recipe, tail_logs=True)
        if result.pop("failed"):
            raise PhaseFailedError("the job did not succeed")
        return result

    def _export(self) -> dict[str, Any]:
        from launch import backend

        backend.activate(cpu=True)
        from converters.export_hf import export_nvila
        from models.checkpoint_paths import find_checkpoint

        return export_nvila(find_checkpoint(self.folder / "sft"), self._clear("hf"))

    def _verify(self) -> dict[str, Any]:
        from launch import backend

        backend.activate(cpu=True)
        from converters.verify import verify_nvila
        from models.checkpoint_paths import find_checkpoint

        result = verify_nvila(self.folder / "hf", find_checkpoint(self.folder / "sft"))
        if not result.passed:
            raise PhaseFailedError(f"the two models differ: {result.to_dict()}")
        return result.to_dict()

    def _evaluate(self) -> dict[str, Any]:
        out = self.folder / "evaluation.json"
        subprocess.run(
            [
                sys.executable,
                "-m",
                "launch.quickstart.evaluate",
                *("--hf", str(self.folder / "hf")),
                *("--data", str(self.folder / "data")),
                *("--out", str(out)),
            ],
            check=True,
        )
        return json.loads(out.read_text(encoding="utf-8"))

    def _report(self, peak_bytes: int) -> tuple[dict[str, Any], Path]:
        evaluation = dict(self._state["evaluate"]["figures"])
        shown = [
            Shown(
                image=Path(row["images"][0]),
                question=row["question"].removeprefix("<image>\n"),
                answer=row["answer"],
                truth=row["truth"],
            )
            for row in evaluation.pop("shown")
        ]
        seconds = {name: phase["seconds"] for name, phase in self._state.items() if name != "peak"}
        # A run that only repeats the report keeps the peak of the run that did the work.
        peak = max(peak_bytes / 2**30, self._state.get("peak", {}).get("rss_gb", 0.0))
        self._state["peak"] = {"rss_gb": peak, "seconds": 0.0}
        self._write_state()
        figures = evaluation | {
            "max_logit_difference": max(
                self._state["verify"]["figures"]["logit_differences"].values()
            ),
            "seconds": sum(seconds.values()),
            "peak_rss_gb": peak,
        }
        losses = {
            stage: [row["loss"] for row in read_steps(self.folder / stage / STEPS_FILE)]
            for stage in STAGES
        }
        path = write_report(
            self.folder, "Quickstart: a nano NVILA reads digits", figures, seconds, losses, shown
        )
        return figures, path


def _progress(steps_file: Path, max_steps: int) -> str | None:
    """Describe the last step of a run, read from the end of its log."""
    if not steps_file.is_file():
        return None
    lines = steps_file.read_text(encoding="utf-8").splitlines()
    try:
        row = json.loads(lines[-1]) if lines else None
    except json.JSONDecodeError:
        return None  # the line is being written
    if row is None:
        return None
    return (
        f"  step {row['step'] + 1}/{max_steps}  loss {row['loss']:.4f}  {row['seconds']:.2f} s/step"
    )

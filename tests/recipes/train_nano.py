"""Trains nano models with the recipes, for the tests that need processes of their own.

It waits for requests as `forked_ranks` says, whose "runs" are done one after the other in the same
processes:
{"dir", "name", "init_from", "train_paths", "weights", "image_folder", "steps", "save_every",
"kill_at_step", "strategy": {...}, "data": {...}, "ddp": {...}, "transformer": {...}, "precision",
"stage", "family", "size", "vision", "projector", "peft_scheme", "peft": {...},
"working_directory", "trainer": {...}, "batch_notes",
"fault": {"kind", "step", "factor", "steps"}, "hang_minutes", "bad_steps": {...}, "ckpt": {...},
"optim": {...}, "objective": {...}, "optimizer_state", "model": {...}};
the family is nvila, llava, llava_jp (stage sft) or mllama. A run without train_paths reads shards,
data.path. Each rank appends to the file batch_notes + its number what every micro-batch held. The
last rank has the fault: "SIGTERM", "hang" or "full_disk" after a step, or "loss" or "gradient"
times the factor in some steps.
"""

import contextlib
import gc
import json
import math
import os
import shutil
import signal
import subprocess
import time
import types
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import nemo_run as run
import psutil
import torch
from forked_ranks import wait_for_runs
from megatron.core import parallel_state
from megatron.core.num_microbatches_calculator import destroy_num_microbatches_calculator
from nemo.lightning import io
from nemo.utils.app_state import AppState

import recipes.llava
import recipes.llava_jp
import recipes.mllama
import recipes.nvila
from datamodules.energon_stream import EvaluationBatches, TrainingBatches
from recipes.bad_steps import BadSteps
from recipes.hang_watchdog import HangWatchdog
from recipes.parts import optimizer_state
from recipes.rows import LayoutRow

SPARE_BYTES = 500_000
"""Of a full disk: for logs, but not for a checkpoint."""
GRADIENT_HOOK = "DistributedDataParallel._make_backward_post_hook.<locals>.hook"


class KillAt(pl.Callback, io.IOMixin):
    """Ends the process as a power cut would, after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, *arguments) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


class FaultOfOneRank(pl.Callback, io.IOMixin):
    """Signals the last rank and its processes, lets it hang, fills the disk or spoils numbers."""

    def __init__(self, kind: str, step: int, factor: float = math.nan, steps: int = 1) -> None:
        self.kind, self.step, self.factor, self.steps = kind, step, factor, steps
        self.undo = None

    def on_train_batch_start(self, trainer, module, *arguments) -> None:
        if self.kind in ("loss", "gradient") and self._is_here(trainer):
            self.undo = getattr(self, f"multiply_{self.kind}")(module)

    def multiply_loss(self, module):
        forward_step = module.forward_step

        def multiplied(batch):
            losses, mask = forward_step(batch)
            return losses * self.factor, mask

        module.forward_step = multiplied
        return lambda: delattr(module, "forward_step")

    def multiply_gradient(self, module):
        parameter = next(one for one in module.parameters() if one.requires_grad)
        return parameter.register_hook(lambda gradient: gradient * self.factor).remove

    def _is_here(self, trainer):
        is_last = trainer.global_rank == trainer.world_size - 1
        return is_last and 0 <= trainer.global_step - self.step < self.steps

    def on_train_batch_end(self, trainer, *arguments) -> None:
        if self.undo is not None:
            self.undo()
            self.undo = None
        if self.kind in ("loss", "gradient") or not self._is_here(trainer):
            return
        if self.kind == "hang":
            wait_for_ever()
        if self.kind == "full_disk":
            folder = Path(AppState().log_dir)
            free = shutil.disk_usage(folder).free
            (folder / "filler").write_bytes(bytes(free - SPARE_BYTES))
            return
        # As a scheduler does, from outside: readers of data and writers of checkpoints get it too.
        processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
        numbers = [str(process.pid) for process in processes]
        subprocess.run(["kill", "-s", self.kind.removeprefix("SIG"), *numbers], check=True)


def wait_for_ever():
    time.sleep(3600)


class NoteChanges(pl.Callback, io.IOMixin):
    """Writes to `changes.json` of the run which parameters may train, and which have changed."""

    def __init__(self) -> None:
        self.before = {}

    def on_train_batch_start(self, trainer, module, *arguments) -> None:
        if not self.before:
            self.before = {name: value.clone() for name, value in module.named_parameters()}

    def on_train_end(self, trainer, module) -> None:
        after = dict(module.named_parameters())
        noted = {
            "trainable": [name for name, value in after.items() if value.requires_grad],
            "changed": [name for name in after if not torch.equal(after[name], self.before[name])],
        }
        if trainer.is_global_zero:
            (Path(AppState().log_dir) / "changes.json").write_text(json.dumps(noted))


def build(options):
    finetune_recipe = {
        "nvila": partial(recipes.nvila.finetune_recipe, stage=options.get("stage", "sft")),
        "mllama": recipes.mllama.finetune_recipe,
        "llava": partial(recipes.llava.finetune_recipe, stage=options.get("stage", "sft")),
        "llava_jp": partial(recipes.llava_jp.finetune_recipe, stage=options.get("stage", "sft")),
    }[options.get("family", "nvila")]
    recipe = finetune_recipe(
        dir=options["dir"],
        name=options["name"],
        size=options.get("size", "nano"),
        **{name: options[name] for name in ("vision", "projector") if name in options},
        init_from=options["init_from"],
        num_gpus_per_node=int(os.environ.get("WORLD_SIZE", "1")),
        precision=options.get("precision"),
        peft_scheme=options.get("peft_scheme", "none"),
        data="files" if "train_paths" in options else "shards",
    )
    recipe.trainer.max_steps = options["steps"]
    for name, value in options.get("trainer", {}).items():
        setattr(recipe.trainer, name, value)
    recipe.log.ckpt.every_n_train_steps = options.get("save_every", 1000)
    for name, value in options.get("ckpt", {}).items():
        setattr(recipe.log.ckpt, name, value)
    for part in ("language_transformer_config", "vision_transformer_config"):
        for name, value in options.get("transformer", {}).items():
            setattr(getattr(recipe.model.config, part), name, value)
    for name, value in options.get("model", {}).items():
        setattr(recipe.model.config, name, value)
    for name, value in options.get("strategy", {}).items():
        setattr(recipe.trainer.strategy, name, value)
    for name, value in options.get("ddp", {}).items():
        setattr(recipe.trainer.strategy.ddp, name, value)
    if "optimizer_state" in options:
        layout = LayoutRow(micro_batch_size=8, optimizer_state=options["optimizer_state"])
        for name, value in optimizer_state(layout).items():
            setattr(recipe.optim.config, name, value)
    for name, value in options.get("optim", {}).items():
        setattr(recipe.optim, name, value)
    for name, value in options.get("objective", {}).items():
        setattr(recipe.model.objective, name, value)
    for name in {"train_paths", "weights", "image_folder"} & options.keys():
        setattr(recipe.data, name, options[name])
    for name, value in options.get("data", {}).items():
        setattr(recipe.data, name, value)
    if "peft_scheme" in options:
        recipe.peft.dropout = 0.0  # layouts would draw different random numbers
        for name, value in options.get("peft", {}).items():
            setattr(recipe.peft, name, value)
        recipe.trainer.callbacks.append(run.Config(NoteChanges))
    if "kill_at_step" in options:
        recipe.trainer.callbacks.append(run.Config(KillAt, step=options["kill_at_step"]))
    if "fault" in options:
        recipe.trainer.callbacks.insert(0, run.Config(FaultOfOneRank, **options["fault"]))
    for callback in recipe.trainer.callbacks:
        if callback.__fn_or_cls__ is HangWatchdog and "hang_minutes" in options:
            callback.minutes = options["hang_minutes"]
        if callback.__fn_or_cls__ is BadSteps:
            for name, value in options.get("bad_steps", {}).items():
                setattr(callback, name, value)
    return recipe


@contextlib.contextmanager
def batches_noted(path):
    """Writes down what the readers of shards give: lines of [kind, sample keys]."""
    rank = os.environ.get("RANK", "0")

    def note(kind, batch):
        with open(f"{path}{rank}", "a", encoding="utf-8") as file:
            file.write(json.dumps([kind, batch["sample_keys"]]) + "\n")
        return batch

    give, go = TrainingBatches.__next__, EvaluationBatches.__iter__
    TrainingBatches.__next__ = lambda self: note("train", give(self))
    EvaluationBatches.__iter__ = lambda self: (note("validation", batch) for batch in go(self))
    yield
    TrainingBatches.__next__, EvaluationBatches.__iter__ = give, go


def forget_the_run():
    """Take back what a run leaves behind in its processes."""
    torch.distributed.barrier()
    # Megatron's hooks of gradients hold their model through C++, where Python's collector cannot
    # see the cycle, and each model holds its process groups, with 75 open files a run.
    for one in gc.get_objects():
        if isinstance(one, types.FunctionType) and one.__qualname__ == GRADIENT_HOOK:
            for cell in one.__closure__:
                cell.cell_contents = None
    parallel_state.destroy_model_parallel()
    torch.distributed.destroy_process_group()
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        os.environ.pop("MASTER_PORT", None)  # Lightning has chosen it, and finds another
    else:
        # The first rank's store may still be there, with the keys of the last group.
        os.environ["MASTER_PORT"] = str(int(os.environ["MASTER_PORT"]) + 1)
    destroy_num_microbatches_calculator()
    app_state = AppState()
    for name in ("log_dir", "exp_dir", "name"):
        setattr(app_state, name, None)
    gc.collect()


if __name__ == "__main__":
    gc.collect()
    gc.freeze()  # what is imported is no garbage: it need not be looked at after each run
    for one in wait_for_runs():
        os.chdir(one.get("working_directory", "."))
        noted = (
            batches_noted(one["batch_notes"]) if "batch_notes" in one else contextlib.nullcontext()
        )
        with noted:
            run.run(build(one), direct=True)
        forget_the_run()

"""Trains nano on shards with NeMo's trainer, for the test that needs processes of its own.

    python [-m torch.distributed.run --nproc-per-node 2] energon_training.py JSON

JSON is {"folder", "from", "steps", "save_every", "data": {...}, "runs": [{"name", "keys",
"stop_after"}, ...]}; the runs are done one after the other in the same processes, and one with
"stop_after" breaks off after that step; it must be the last of its processes. Each rank appends to
the file `keys` + its number what every micro-batch of training and of validation held.
"""

import contextlib
import json
import os
import sys

import lightning.pytorch as pl
import nemo_run as run
import torch
from megatron.core import parallel_state
from megatron.core.num_microbatches_calculator import destroy_num_microbatches_calculator
from nemo.lightning import io
from nemo.utils.app_state import AppState

from datamodules import energon_stream
from datamodules.energon import EnergonDataModule
from recipes.nvila.recipe import finetune_recipe


class BrokenOff(Exception):  # noqa: N818 - it is what happens, not what is wrong
    """The run ends here, as it does on a failure."""


class StopAfter(pl.Callback, io.IOMixin):
    """Breaks a run off after a step."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *_arguments):
        if trainer.global_step == self.step:
            raise BrokenOff


def build(settings, name, stop_after=None):
    recipe = finetune_recipe(
        dir=settings["folder"],
        name=name,
        size="nano",
        init_from=settings["from"],
        num_gpus_per_node=int(os.environ.get("WORLD_SIZE", "1")),
    )
    recipe.trainer.max_steps = settings["steps"]
    recipe.trainer.limit_val_batches = 1.0
    recipe.trainer.val_check_interval = 2
    recipe.log.ckpt.every_n_train_steps = settings["save_every"]
    if stop_after is not None:
        recipe.trainer.callbacks.append(run.Config(StopAfter, step=stop_after))
    recipe.data = run.Config(
        EnergonDataModule, assets=settings["from"], micro_batch_size=1, **settings["data"]
    )
    return recipe


def write_keys(path):
    """Lets loaders write down what they give."""
    rank = int(os.environ.get("RANK", "0"))

    def note(kind, batch):
        with open(f"{path}{rank}", "a", encoding="utf-8") as file:
            file.write(json.dumps([kind, batch["sample_keys"]]) + "\n")
        return batch

    training, evaluation = energon_stream.TrainingBatches, energon_stream.EvaluationBatches
    give, go = training.__next__, evaluation.__iter__
    training.__next__ = lambda self: note("train", give(self))
    evaluation.__iter__ = lambda self: (note("validation", batch) for batch in go(self))

    def undo():
        training.__next__, evaluation.__iter__ = give, go

    return undo


def forget_the_run():
    """Takes back what a run leaves behind in its processes."""
    torch.distributed.barrier()
    parallel_state.destroy_model_parallel()
    torch.distributed.destroy_process_group()
    if "MASTER_PORT" in os.environ:
        # The keys of the last group are still in torchrun's store: meet in a store of our own.
        os.environ["MASTER_PORT"] = str(int(os.environ["MASTER_PORT"]) + 1)
        os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"
    destroy_num_microbatches_calculator()
    for name in ("log_dir", "exp_dir", "name"):
        setattr(AppState(), name, None)


def main():
    settings = json.loads(sys.argv[1])
    for one in settings["runs"]:
        undo = write_keys(one["keys"])
        recipe = build(settings, one["name"], one.get("stop_after"))
        with contextlib.suppress(BrokenOff):
            run.run(recipe, direct=True)
        undo()
        forget_the_run()


if __name__ == "__main__":
    main()

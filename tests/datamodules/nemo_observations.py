"""Runs the data module under NeMo and prints what it does as JSON; the tests judge.

NeMo is imported here, in a process of its own: that takes half a minute, and a process that has
imported Megatron-Core cannot switch the CPU backend on any more.

Usage: python tests/datamodules/nemo_observations.py SETTINGS_JSON
"""

import json
import pickle
import sys

import cpu_backend

cpu_backend.enable()

import nemo_run as run  # noqa: E402
from lightning.pytorch.trainer.states import TrainerFn  # noqa: E402
from megatron.core import num_microbatches_calculator, parallel_state  # noqa: E402
from nemo.lightning import io  # noqa: E402
from nemo.lightning.pytorch.strategies import MegatronStrategy  # noqa: E402
from nemo.utils import AppState  # noqa: E402
from nemo_run.core.serialization.zlib_json import ZlibJSONSerializer  # noqa: E402

from datamodules.preloaded import PreloadedDataModule  # noqa: E402


class State:
    fn = TrainerFn.FITTING


class Trainer:
    """What the data module and NeMo's sampler see of a trainer."""

    def __init__(self, global_step=0, max_steps=20, **limits):
        self.global_step = global_step
        self.max_steps = max_steps
        self.strategy = object.__new__(MegatronStrategy)
        self.state = State()
        self.limit_train_batches = limits.get("limit_train_batches", 1.0)
        self.limit_val_batches = limits.get("limit_val_batches", 2)
        self.limit_test_batches = limits.get("limit_test_batches", 1.0)
        self.val_check_interval = limits.get("val_check_interval", 0.5)
        self.num_sanity_val_steps = 1


def connect(data, trainer, ranks):
    """Does what NeMo's strategy does before it asks for loaders."""
    num_microbatches_calculator.unset_num_microbatches_calculator()
    AppState().data_parallel_size = ranks
    data.trainer = trainer
    data.data_sampler.setup(0)
    data.data_sampler.connect(trainer)


def steps_of(data, ranks, steps, loader_name="train_dataloader"):
    """The keys of each step, all ranks and micro-batches joined as the gradient joins them."""
    per_step = data.global_batch_size // (data.micro_batch_size * ranks)
    world = []
    for rank in range(ranks):
        parallel_state.get_data_parallel_rank = lambda rank=rank: rank
        parallel_state.get_data_parallel_world_size = lambda: ranks
        loader = data.data_sampler.transform_dataloader(getattr(data, loader_name)())
        batches = iter(loader)
        read = []
        for _ in range(steps * per_step):
            batch = next(batches, None)
            if batch is None:
                break
            read.append(batch["sample_keys"])
        world.append(read)
    joined = []
    for step in range(len(world[0]) // per_step):
        keys = []
        for micro in range(step * per_step, (step + 1) * per_step):
            for rank in range(ranks):
                keys += world[rank][micro]
        joined.append(keys)
    return joined


def make(settings, **changes):
    data = PreloadedDataModule(**{**settings["arguments"], **changes})
    data.setup("fit")
    return data


def orders(settings):
    """Sample order for several numbers of ranks and workers."""
    found = {}
    for ranks, workers in [(1, 0), (1, 1), (1, 3), (2, 0), (2, 3), (4, 0), (4, 1)]:
        data = make(settings, num_workers=workers)
        connect(data, Trainer(), ranks)
        found[f"{ranks} ranks, {workers} workers"] = steps_of(data, ranks, 6)
    return found


def resumes(settings):
    """Stops after each number of steps and goes on, on another number of ranks."""
    found = {}
    for stop in range(1, 6):
        first = make(settings)
        trainer = Trainer()
        connect(first, trainer, 2)
        before = steps_of(first, 2, stop)
        first.val_dataloader()  # made in the middle of training, it must change nothing
        trainer.global_step = stop
        first.val_dataloader()
        saved = first.state_dict()
        second = make(settings, num_workers=1)
        second.load_state_dict(pickle.loads(pickle.dumps(saved)))
        connect(second, Trainer(global_step=stop), 4)
        after = steps_of(second, 4, 6 - stop)
        second.trainer.global_step = 6
        found[stop] = {
            "keys": before + after,
            "consumed": saved["consumed_samples"],
            "consumed_after": second.state_dict()["consumed_samples"],
        }
    return found


def refusals(settings):
    """The messages of everything that does not suit."""
    found = {}

    def attempt(name, action):
        try:
            action()
        except ValueError as error:
            found[name] = str(error)
        else:
            found[name] = "accepted"

    saved = make(settings)
    connect(saved, Trainer(), 1)
    saved.train_dataloader()
    state = saved.state_dict()
    attempt("same order", lambda: make(settings).load_state_dict(state))
    attempt("other seed", lambda: make(settings, seed=8).load_state_dict(state))

    def late():
        data = PreloadedDataModule(**{**settings["arguments"], "seed": 8})
        data.load_state_dict(state)
        data.setup()

    attempt("other seed, loaded before setup", late)
    for changes in settings["refused"]:
        attempt(json.dumps(changes), lambda changes=changes: make(settings, **changes))
    for limits in ({"max_steps": -1}, {"limit_train_batches": 5}, {"limit_train_batches": 0.5}):
        data = make(settings)
        connect(data, Trainer(**limits), 1)
        attempt(json.dumps(limits), data.reconfigure_limit_batches)

    def nothing_to_train():
        data = make(settings, train_paths=None)
        connect(data, Trainer(), 1)
        data.train_dataloader()

    attempt("no training files", nothing_to_train)
    return found


def limits(settings):
    """The trainer's limits after the data module has seen them, twice."""
    data = make(settings)
    trainer = Trainer(limit_train_batches=20, limit_test_batches=3)
    connect(data, trainer, 1)
    data.reconfigure_limit_batches()
    data.reconfigure_limit_batches()
    return {
        "train": trainer.limit_train_batches,
        "val": trainer.limit_val_batches,
        "test": trainer.limit_test_batches,
        "sanity": trainer.num_sanity_val_steps,
        "val_check_interval": trainer.val_check_interval,
    }


def evaluation(settings):
    """What validation and test read."""
    data = make(settings)
    connect(data, Trainer(), 2)
    bare = make(settings, validation_paths=None, test_paths=None)
    split = make(settings, validation_paths=None, test_paths=None, split=[0.5, 0.3, 0.2])
    for module in (bare, split):
        connect(module, Trainer(), 1)
    return {
        "validation": steps_of(data, 2, 100, "val_dataloader"),
        "test": steps_of(data, 2, 100, "test_dataloader"),
        "none": [bare.val_dataloader(), bare.test_dataloader()],
        "split": {
            "train": steps_of(split, 1, 40),
            "validation": steps_of(split, 1, 100, "val_dataloader"),
            "test": steps_of(split, 1, 100, "test_dataloader"),
        },
    }


def copies(settings):
    """The first steps of copies made by each way of carrying a data module to another process."""
    arguments = settings["arguments"]
    original = make(settings)
    text = ZlibJSONSerializer().serialize(run.Config(PreloadedDataModule, **arguments))
    found = {}
    for name, copy in {
        "original": original,
        "reinit": io.reinit(original),
        "pickle": pickle.loads(pickle.dumps(original)),
        "config": __import__("fiddle").build(ZlibJSONSerializer().deserialize(text)),
    }.items():
        copy.setup("fit")
        connect(copy, Trainer(), 1)
        found[name] = steps_of(copy, 1, 2)
    return found


def first_batch(settings):
    """Names, kinds and shapes of a micro-batch."""
    found = {}
    for fixed in (False, True):
        data = make(settings, pad_to_seq_length=fixed)
        connect(data, Trainer(), 1)
        parallel_state.get_data_parallel_rank = lambda: 0
        parallel_state.get_data_parallel_world_size = lambda: 1
        batch = next(iter(data.data_sampler.transform_dataloader(data.train_dataloader())))
        found[str(fixed)] = {
            name: [str(value.dtype), list(value.shape)]
            for name, value in batch.items()
            if name not in ("sample_keys", "num_tokens")
        }
    return found


def other_family(settings):
    """Keys and shapes of the first micro-batches of the other family, read by two workers."""
    data = make(settings, assets=settings["llama_assets"], num_workers=2)
    connect(data, Trainer(), 1)
    parallel_state.get_data_parallel_rank = lambda: 0
    parallel_state.get_data_parallel_world_size = lambda: 1
    batches = iter(data.data_sampler.transform_dataloader(data.train_dataloader()))
    read = [next(batches) for _ in range(12)]
    validation = make(settings, assets=settings["llama_assets"])
    connect(validation, Trainer(), 1)
    return {
        "keys": [batch["sample_keys"] for batch in read],
        "images": [batch["images_per_sample"].tolist() for batch in read],
        "spans": [batch["image_spans"].tolist() for batch in read],
        "tiles": [list(batch["tiles"].shape) for batch in read],
        "lengths": [(batch["labels"] >= 0).sum(1).tolist() for batch in read],
        "validation": steps_of(validation, 1, 100, "val_dataloader"),
    }


def main():
    settings = json.loads(sys.argv[1])
    observe = (orders, resumes, refusals, limits, evaluation, copies, first_batch, other_family)
    result = {part.__name__: part(settings) for part in observe}
    with open(settings["result"], "w", encoding="utf-8") as file:
        json.dump(result, file)


if __name__ == "__main__":
    main()

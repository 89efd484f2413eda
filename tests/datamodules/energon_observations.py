"""Runs the Energon data module under NeMo and writes what it does as JSON; the tests judge.

NeMo is imported here, in a process of its own: that takes half a minute, and a process that has
imported Megatron-Core cannot switch the CPU backend on any more.

Usage: python tests/datamodules/energon_observations.py SETTINGS_JSON
"""

import contextlib
import json
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace

import cpu_backend

cpu_backend.enable()

import fiddle  # noqa: E402
import nemo_run as run  # noqa: E402
import torch  # noqa: E402
from lightning.pytorch.trainer.states import TrainerFn  # noqa: E402
from megatron.core import num_microbatches_calculator  # noqa: E402
from nemo.lightning import io  # noqa: E402
from nemo.lightning.pytorch.strategies import MegatronStrategy  # noqa: E402
from nemo.utils import AppState  # noqa: E402
from nemo_run.core.serialization.zlib_json import ZlibJSONSerializer  # noqa: E402

from datamodules import energon  # noqa: E402
from datamodules.conversation_module import DataParallelPlace  # noqa: E402
from datamodules.energon import EnergonDataModule  # noqa: E402


def trainer_at(global_step=0, **limits):
    """What the data module and NeMo's sampler see of a trainer."""
    return SimpleNamespace(
        global_step=global_step,
        max_steps=limits.get("max_steps", 20),
        strategy=object.__new__(MegatronStrategy),
        state=SimpleNamespace(fn=TrainerFn.FITTING),
        limit_train_batches=limits.get("limit_train_batches", 1.0),
        limit_val_batches=2,
        limit_test_batches=3,
        val_check_interval=0.5,
        num_sanity_val_steps=1,
    )


def connect(data, trainer, ranks=1, rank=0):
    """Does what NeMo's strategy does before it asks for loaders."""
    num_microbatches_calculator.unset_num_microbatches_calculator()
    AppState().data_parallel_size = ranks
    energon.data_parallel_place = lambda: DataParallelPlace(rank=rank, size=ranks, group=None)
    data.trainer = trainer
    data.data_sampler.setup(0)
    data.data_sampler.connect(trainer)


def make(settings, **changes):
    data = EnergonDataModule(**{**settings["arguments"], **changes})
    data.setup("fit")
    return data


def read(data, steps, loader="train_dataloader"):
    """The keys of each micro-batch of so many steps, or of all."""
    micro_batches = num_microbatches_calculator.get_num_microbatches()
    batches = iter(data.data_sampler.transform_dataloader(getattr(data, loader)()))
    if steps is None:
        return [batch["sample_keys"] for batch in batches]
    return [next(batches)["sample_keys"] for _ in range(steps * micro_batches)]


def gather_all(states):
    """Stands in for the collective: the states of all ranks, as each of them would get them."""

    def gather(places, mine, group=None):
        del group
        states.append(mine)
        places[:] = [*states, *[None] * (len(places) - len(states))]

    return gather


def save(modules, ranks, step):
    """Saves the state of a run of several ranks, one after the other."""
    states = []
    torch.distributed.all_gather_object = gather_all(states)
    for rank, data in enumerate(modules):
        energon.data_parallel_place = lambda rank=rank: DataParallelPlace(
            rank=rank, size=ranks, group=None
        )
        data.trainer.global_step = step
        saved = data.state_dict()
    return pickle.loads(pickle.dumps(saved))


def world(settings, ranks, step=0, saved=None, **changes):
    modules = []
    for rank in range(ranks):
        data = make(settings, **changes)
        connect(data, trainer_at(step), ranks, rank)
        if saved is not None:
            data.load_state_dict(saved)
        data.train_dataloader()
        modules.append(data)
    return modules


def resumes(settings):
    """Stops after each number of steps, and goes on."""
    found = {}
    for ranks, workers, packing in (
        (1, 0, None),
        (1, 2, None),
        (2, 0, None),
        (2, 2, None),
        (1, 2, 4),
        (2, 0, 4),
    ):
        options = {"ranks": ranks, "num_workers": workers, "packing_buffer_size": packing}
        expected = [read(data, 6) for data in world(settings, **options)]
        for stop in (0, 1, 2, 4):
            first = world(settings, **options)
            before = [read(data, stop) for data in first]
            for data in first:
                data.val_dataloader()  # made in the middle of training, it must change nothing
            saved = save(first, ranks, stop)
            second = world(settings, **options, step=stop, saved=saved)
            again = save(second, ranks, stop)
            after = [read(data, 6 - stop) for data in second]
            name = f"{ranks} ranks, {workers} workers, buffer of {packing}, {stop} steps"
            found[name] = {
                "expected": expected,
                "found": [one + two for one, two in zip(before, after, strict=True)],
                "consumed": saved["consumed_samples"],
                "consumed_after": save(second, ranks, 6)["consumed_samples"],
                "saved_again": again == saved,
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

    first = make(settings)
    connect(first, trainer_at())
    read(first, 1)
    saved = save([first], 1, 1)

    def resume(ranks=1, state=saved, **changes):
        world(settings, ranks, step=1, saved=state, **changes)

    attempt("same", resume)
    changes = {
        "seed": 8,
        "num_workers": 1,
        "train_split": "val",
        "path": settings["other"],
        "micro_batch_size": 1,
        "shuffle_buffer_size": 3,
        "packing_buffer_size": 4,
        "max_samples_per_sequence": None,
    }
    for name, value in changes.items():
        attempt(name, lambda name=name, value=value: resume(**{name: value}))
    attempt("data_parallel_size", lambda: resume(ranks=2))
    attempt("no state", lambda: world(settings, 1, step=1))
    attempt("empty state", lambda: resume(state={}))
    damaged = {**saved, "places": [{**saved["places"][0], "states": [b"no pickle"]}]}
    attempt("damaged", lambda: resume(state=damaged))

    def late():
        data = EnergonDataModule(**{**settings["arguments"], "seed": 8})
        data.load_state_dict(saved)
        data.setup()
        connect(data, trainer_at(1))
        data.train_dataloader()

    attempt("seed, loaded before setup", late)
    for change in settings["refused"]:
        attempt(json.dumps(change), lambda change=change: make(settings, **change))
    for limits in ({"max_steps": -1}, {"limit_train_batches": 5}):
        data = make(settings)
        connect(data, trainer_at(**limits))
        attempt(json.dumps(limits), data.reconfigure_limit_batches)
    return found


def limits(settings):
    """The trainer's limits after the data module has seen them, twice."""
    data = make(settings)
    trainer = trainer_at(limit_train_batches=20)
    connect(data, trainer)
    data.reconfigure_limit_batches()
    data.reconfigure_limit_batches()
    return [
        trainer.limit_train_batches,
        trainer.limit_val_batches,
        trainer.limit_test_batches,
        trainer.num_sanity_val_steps,
        trainer.val_check_interval,
    ]


def evaluation(settings):
    """What validation and test read on two ranks, and what is there without splits."""
    found = {}
    for loader in ("val_dataloader", "test_dataloader"):
        found[loader] = []
        for rank in range(2):
            data = make(settings, test_split="val", num_validation_workers=2)
            connect(data, trainer_at(), 2, rank)
            found[loader].append(read(data, None, loader))
    bare = make(settings, validation_split=None)
    connect(bare, trainer_at())
    found["none"] = [bare.val_dataloader(), bare.test_dataloader()]
    return found


def copies(settings):
    """The first steps of copies made by each way of carrying a data module to another process."""
    arguments = settings["arguments"]
    original = EnergonDataModule(**arguments)
    config = run.Config(EnergonDataModule, **arguments)
    text = ZlibJSONSerializer().serialize(config)
    original.io_dump(Path(settings["io"]), yaml_attrs=[])
    found = {}
    for name, copy in {
        "original": original,
        "reinit": io.reinit(original),
        "pickle": pickle.loads(pickle.dumps(original)),
        "config": fiddle.build(ZlibJSONSerializer().deserialize(text)),
        "io": io.load(Path(settings["io"])),
    }.items():
        copy.setup("fit")
        connect(copy, trainer_at())
        found[name] = read(copy, 2)
    return found


def main():
    settings = json.loads(sys.argv[1])
    observe = (resumes, refusals, limits, evaluation, copies)
    with contextlib.redirect_stdout(sys.stderr):
        result = {part.__name__: part(settings) for part in observe}
    with open(settings["result"], "w", encoding="utf-8") as file:
        json.dump(result, file)


if __name__ == "__main__":
    main()

"""The verb prepare: a raw data set to tar shards."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from preparation.formats import FORMATS


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options of the verb; nothing heavy is imported for it."""
    formats = "; ".join(f"{name}: {row.description}" for name, row in FORMATS.items())
    parser.add_argument("source", metavar="SOURCE", help="file or folder of the data set")
    parser.add_argument("--format", required=True, choices=tuple(FORMATS), help=formats)
    parser.add_argument("--out", required=True, metavar="DIR", help="new folder of the shards")
    group = parser.add_argument_group("reading")
    group.add_argument(
        "--image-folder", metavar="DIR", help="where the images are (default: beside the source)"
    )
    group.add_argument(
        "--max-images", type=int, metavar="N", help="documents keep no more images than this"
    )
    group.add_argument(
        "--clip-model", metavar="DIR", help="places images before the sentence most like them"
    )
    _add_filters(parser)
    group = parser.add_argument_group("writing")
    group.add_argument(
        "--shard-size-mb", type=int, default=512, metavar="MB", help="size of a shard (512)"
    )
    group.add_argument(
        "--samples-per-shard", type=int, metavar="N", help="a shard holds no more samples"
    )
    group.add_argument(
        "--split",
        default="1",
        metavar="SHARES",
        help="shares of train,val,test, as 0.98,0.01,0.01 (default: all train)",
    )
    group.add_argument(
        "--max-tiles",
        type=int,
        metavar="N",
        help="tiles of an image in training; 0 for no bound (default: what the format says)",
    )
    group.add_argument("--licence", help="of the data set (default: what the records say)")
    group.add_argument(
        "--tokenizer", metavar="DIR", help="counts tokens for the report with its tokenizer.json"
    )
    _add_running(parser)


def _add_filters(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("filters")
    numbers = {
        "--max-text-characters": (5_000, "a longer text is rejected"),
        "--min-image-side": (10, "a shorter side in pixels of any image is rejected"),
        "--max-image-side": (16_000, "a longer side in pixels of any image is rejected"),
        "--max-image-pixels": (89_478_485, "a larger image is taken for a decompression bomb"),
    }
    for option, (default, text) in numbers.items():
        group.add_argument(
            option, type=int, default=default, metavar="N", help=f"{text} ({default})"
        )
    group.add_argument("--language", metavar="CODE", help="keep one language, as ja or en")
    group.add_argument(
        "--min-similarity", type=float, metavar="X", help="least CLIP similarity of any image"
    )
    group.add_argument(
        "--near-duplicate-bits",
        type=int,
        metavar="BITS",
        help="drop samples that show only pictures seen before: hashes of 64 bits that differ in "
        "at most so many, 0 to 15 (default: only the same text and bytes are duplicates)",
    )
    group.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="LIST",
        help="leave out the samples of a list that training wrote (bad_samples.jsonl); repeatable",
    )


def _add_running(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("running")
    group.add_argument(
        "--jobs",
        type=int,
        default=len(os.sched_getaffinity(0)),
        metavar="N",
        help="processes (default: the cores); the output does not depend on it",
    )
    group.add_argument(
        "--no-space-check", action="store_true", help="start although the disk may be too small"
    )
    kind = group.add_mutually_exclusive_group()
    kind.add_argument(
        "--tasks", type=int, metavar="N", help="as N jobs of this machine through NeMo-Run"
    )
    kind.add_argument(
        "--task",
        metavar="I/N",
        help="only the I-th of N parts, from 0; the others may run elsewhere at the same time",
    )
    kind.add_argument("--finish", action="store_true", help="only the last phase, after all tasks")


def prepare(options: Namespace) -> dict[str, Any]:
    """Prepare a data set, or a part of it.

    Args:
        options: The verb's options.

    Returns:
        Figures; `failed` is true when the work could not be done, and starting again goes on.

    Raises:
        ValueError: The request cannot work.
    """
    from preparation.engine import Preparation, PreparationFailed, TaskNumber
    from preparation.tasks import task_commands

    preparation = Preparation(FORMATS[options.format], _request(options))
    try:
        if options.tasks is not None:
            share = max(1, options.jobs // max(1, options.tasks))
            arguments = [*options.arguments, "--jobs", str(share)]
            commands = task_commands(arguments, options.tasks)
            if not preparation.is_finished():
                preparation.open()  # refuses here what every task would refuse
                if not _run_tasks(commands.tasks):
                    raise PreparationFailed("a task failed, as its log above says")
            return preparation.run(finish_only=True)
        task = None if options.task is None else TaskNumber.parse(options.task)
        return preparation.run(task=task, finish_only=options.finish)
    except PreparationFailed as error:
        print(f"error: {error}.", file=sys.stderr)
        return {"failed": True}
    except KeyboardInterrupt:
        print("error: stopped; start again to go on.", file=sys.stderr)
        return {"failed": True}


def _request(options: Namespace) -> Any:
    from preparation.options import FilterOptions, PrepareOptions, parse_split
    from preparation.source import ReaderOptions

    filters = FilterOptions(
        max_text_characters=options.max_text_characters,
        min_image_side=options.min_image_side,
        max_image_side=options.max_image_side,
        max_image_pixels=options.max_image_pixels,
        language=options.language,
        min_similarity=options.min_similarity,
        near_duplicate_bits=options.near_duplicate_bits,
    )
    reader = ReaderOptions(
        image_folder=_path(options.image_folder),
        max_images=options.max_images,
        clip_model=_path(options.clip_model),
    )
    return PrepareOptions(
        source=Path(options.source),
        format=options.format,
        out=Path(options.out),
        jobs=options.jobs,
        shard_megabytes=options.shard_size_mb,
        samples_per_shard=options.samples_per_shard,
        filters=filters,
        exclude=tuple(Path(path) for path in options.exclude),
        split=parse_split(options.split),
        tokenizer=_path(options.tokenizer),
        max_tiles=options.max_tiles,
        licence=options.licence,
        reader=reader,
        check_free_space=not options.no_space_check,
    )


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


def _run_tasks(commands: tuple[tuple[str, ...], ...]) -> bool:
    """Run commands at the same time on this machine; return whether all ended well."""
    import shlex

    import nemo_run as run
    from torchx.specs import AppState

    from launch.executors.local import local_executor

    executor = local_executor(1)
    with run.Experiment("prepare", executor=executor) as experiment:
        for number, command in enumerate(commands):
            script = f"cd {shlex.quote(os.getcwd())} && exec {shlex.join(command)}"
            experiment.add(run.Script(inline=script), name=f"prepare-{number}", tail_logs=True)
        experiment.run(detach=False, sequential=False)
    return all(job.state is AppState.SUCCEEDED for job in experiment.jobs)

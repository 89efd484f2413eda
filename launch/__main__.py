"""`python -m launch <verb>`: parse, call one function, exit status 0, 1 (failed) or 2 (refused)."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from converters.families import FAMILIES
from launch.convert import ASSEMBLY_OPTIONS, PROJECTORS
from launch.plan import GPUS
from launch.prepare import add_arguments as add_prepare_arguments
from models.conversation_templates import CONVERSATION_TEMPLATES

# Only the standard library up here: `--help` must answer at once, and NeMo takes half a minute.


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of all verbs."""
    parser = argparse.ArgumentParser(
        prog="python -m launch",
        description="Prepare data, convert, train, check and evaluate vision-language models.",
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    _add_conversions(verbs)
    _add_exports(verbs)
    add_prepare_arguments(
        _verb(verbs, "prepare", "launch.prepare:prepare", "raw data set -> tar shards for training")
    )
    _add_plan(verbs)
    _add_training(verbs)
    _add_views(verbs)
    return parser


def _verb(
    verbs: argparse._SubParsersAction, name: str, function: str, description: str
) -> argparse.ArgumentParser:
    parser = verbs.add_parser(name, help=description, description=description)
    parser.set_defaults(function=function)
    parser.add_argument("--json", metavar="FILE", help="write what was done, with figures, here")
    return parser


def _add_conversions(verbs: argparse._SubParsersAction) -> None:
    parser = _verb(
        verbs,
        "import",
        "launch.convert:import_checkpoint",
        "whole Hugging Face model -> NeMo checkpoint",
    )
    parser.add_argument("--family", required=True, choices=tuple(FAMILIES))
    _add_hf(parser)
    _add_target(parser)
    _add_conversation_template(parser, "the model's")

    parser = _verb(
        verbs,
        "assemble",
        "launch.convert:assemble_checkpoint",
        "language model + vision tower + fresh projector -> NeMo checkpoint, the start of stage 1",
    )
    parser.add_argument("--family", required=True, choices=tuple(ASSEMBLY_OPTIONS))
    parser.add_argument("--llm", required=True, metavar="DIR")
    parser.add_argument("--vision", required=True, metavar="DIR")
    _add_target(parser)
    parser.add_argument(
        "--projector",
        choices=sorted({name for names in PROJECTORS.values() for name in names}),
        help="the defaults are "
        + ", ".join(f"{names[0]} for {family}" for family, names in PROJECTORS.items()),
    )
    parser.add_argument(
        "--max-tiles", type=int, help="tiles of one image at inference, of nvila (default 12)"
    )
    _add_conversation_template(parser, "the language model's")
    parser.add_argument(
        "--image-aspect-ratio",
        choices=("square", "pad"),
        help="of llava with CLIP: the middle of an image (default), or all of it on a square",
    )
    parser.add_argument(
        "--image-scales",
        choices=("1.0", "1.0,0.5"),
        help="of llava and llava_jp: 1.0,0.5 sees images of twice the vision model's size, in "
        "quarters and as a whole (default 1.0)",
    )
    parser.add_argument("--seed", type=int, default=1234, help="of the fresh projector")


def _add_conversation_template(parser: argparse.ArgumentParser, whose: str) -> None:
    parser.add_argument(
        "--conversation-template",
        choices=tuple(CONVERSATION_TEMPLATES),
        help=f"chat template that takes the place of {whose} own",
    )


def _add_target(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, metavar="DIR", help="new or empty folder")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="of all tensors (default: as they are)",
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes that write (default 1)")
    parser.add_argument(
        "--dry-run",
        "--dryrun",
        action="store_true",
        help="check everything and say what would be written",
    )


def _add_exports(verbs: argparse._SubParsersAction) -> None:
    parser = _verb(
        verbs,
        "export",
        "launch.convert:export_checkpoint",
        "NeMo checkpoint -> Hugging Face directory that loads without this project",
    )
    parser.add_argument("--ckpt", required=True, metavar="DIR")
    _add_target(parser)
    parser.add_argument(
        "--layout",
        choices=("hf", "vila", "llava_jp"),
        default="hf",
        help="hf: loads with transformers (default); vila: three folders (nvila only); "
        "llava_jp: as LLaVA-JP was published (llava with a GPT-2 only)",
    )
    parser.add_argument(
        "--lora",
        choices=("merged", "adapter"),
        help="a LoRA checkpoint as a whole model (default) or as adapters for peft",
    )
    parser.add_argument(
        "--base",
        metavar="DIR_OR_NAME",
        help="with --lora adapter: the Hugging Face model that the adapters belong to",
    )

    parser = _verb(
        verbs,
        "verify",
        "launch.convert:verify_checkpoint",
        "prove that a Hugging Face directory and a NeMo checkpoint are one model",
    )
    _add_hf(parser)
    parser.add_argument("--ckpt", required=True, metavar="DIR")
    parser.add_argument("--no-logits", action="store_true", help="compare keys and bits only")
    parser.add_argument(
        "--layers",
        action="store_true",
        default=None,
        help="one layer in memory at a time, and every layer compared (default: where it must)",
    )
    _add_trust(parser)


def _add_factory(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--factory",
        required=True,
        metavar="\"F(stage='sft',size='2b')\"",
        help="the recipe and its arguments",
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")


def _add_plan(verbs: argparse._SubParsersAction) -> None:
    parser = _verb(
        verbs,
        "plan",
        "launch.plan:plan",
        "count the memory of a recipe; status 1 if it is too much",
    )
    _add_factory(parser)
    parser.add_argument("--gpu", required=True, choices=tuple(GPUS))
    parser.add_argument("--nodes", type=int, help="instead of the recipe's")
    parser.add_argument(
        "--vocabulary", type=int, metavar="N", help="tokens, where there is no checkpoint yet"
    )


def _add_training(verbs: argparse._SubParsersAction) -> None:
    parser = _verb(
        verbs,
        "train",
        "launch.train:train",
        "run a recipe through NeMo-Run; KEY=VALUE overrides any field of it",
    )
    _add_factory(parser)
    parser.add_argument(
        "--dry-run",
        "--dryrun",
        dest="dryrun",
        action="store_true",
        help="print the resolved recipe, or the job's script, and stop",
    )
    parser.add_argument(
        "--stages",
        metavar="NAMES",
        help="several stages of the factory, each after the one before, e.g. align,pretrain,sft; "
        "STAGE.KEY=VALUE overrides a field of one",
    )
    parser.add_argument(
        "--site",
        metavar="NAME_OR_FILE",
        help="the cluster that runs it: a name in launch/sites or a file (default: this machine)",
    )
    parser.add_argument(
        "--hours-per-job",
        type=float,
        metavar="HOURS",
        help="with a cluster: the time limit of one job; a longer run is split into such jobs",
    )
    parser.add_argument(
        "--allow-dirty",
        action="store_true",
        help="with a cluster: ship uncommitted changes too",
    )

    parser = _verb(
        verbs, "eval", "launch.evaluate:evaluate", "ask an exported model and score the answers"
    )
    parser.add_argument("--hf", required=True, metavar="DIR")
    parser.add_argument("--task", required=True, help="name of a task, e.g. exact_match")
    parser.add_argument("--data", required=True, metavar="FILE", help="LLaVA JSON or JSONL")
    parser.add_argument("--image-folder", required=True, metavar="DIR")
    parser.add_argument("--limit", type=int, help="number of samples")
    _add_trust(parser)
    parser.add_argument(
        "--shuffle-images", action="store_true", help="give each question another image"
    )


def _add_views(verbs: argparse._SubParsersAction) -> None:
    parser = _verb(
        verbs, "status", "launch.status:show_status", "how far runs are, and what stopped them"
    )
    parser.add_argument("dirs", nargs="+", metavar="DIR", help="folder of a run, or of runs")
    parser = _verb(
        verbs,
        "report",
        "launch.run_report:write_report",
        "one HTML page about a run",
    )
    parser.add_argument("dir", metavar="DIR", help="folder of a run")
    parser.add_argument("--out", metavar="FILE", help="default: report.html in the run's folder")
    parser = _verb(
        verbs,
        "doctor",
        "launch.doctor.verb:examine",
        "is this machine fit to train?",
    )
    parser.add_argument("--site", metavar="NAME_OR_FILE", help="what it should be like")
    parser.add_argument("--dir", default=".", metavar="DIR", help="on the disk that runs go to")
    parser.add_argument("--gpus", type=int, metavar="N", help="of each node; else the site's")


def _add_hf(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--hf",
        required=True,
        metavar="DIR_OR_NAME",
        help="directory, or a model on the hub: organisation/name or hf://organisation/name",
    )


def _add_trust(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run modelling code of the directory that differs from this project's",
    )


def _check_report_path(path: str) -> None:
    """Refuse before a long run what could only fail after it."""
    report = Path(path)
    if report.is_dir():
        raise ValueError(f"json: {report} is a folder; give a file.")
    try:
        report.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise ValueError(
            f"json: {report.parent} is not a folder that can be written to."
        ) from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb and return the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = build_parser().parse_args(arguments)
    options.arguments = list(arguments[1:])
    module_name, _, function_name = options.function.partition(":")
    started = time.perf_counter()
    try:
        if options.json:
            _check_report_path(options.json)
        figures = getattr(importlib.import_module(module_name), function_name)(options)
    except ValueError as error:
        if os.environ.get("NEMO_VLM_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    failed = figures.pop("failed", False)
    figures["seconds"] = round(time.perf_counter() - started, 2)
    for name, value in figures.items():
        if not isinstance(value, list):  # the rows of an evaluation are for --json
            print(f"{name}: {value}")
    if options.json:
        Path(options.json).write_text(
            json.dumps({"verb": options.verb, "failed": bool(failed)} | figures, indent=2) + "\n",
            "utf-8",
        )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

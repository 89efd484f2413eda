"""`python -m launch.quickstart.evaluate`: score the exported model in a process of its own.

Nothing of NeMo, Megatron-Core or the CPU backend is loaded here: what answers is the exported
directory in transformers.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from evaluation.exact_match import ExactMatch, exact_match
from evaluation.generation import load
from launch.quickstart.digits import DigitFiles, digit_files

MAX_NEW_TOKENS = 16
SHOWN_PER_TASK = 6
TASKS = ("single", "strip3")


def questions_of(task: str, files: DigitFiles) -> Path:
    """Return the held-out questions of a task."""
    return {"single": files.validation_singles, "strip3": files.validation_strips}[task]


def main() -> None:
    """Ask all questions; write the scores with some answers, and all answers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hf", required=True)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    options = parser.parse_args()
    files = digit_files(options.data)
    model, processor = load(options.hf)

    def ask(task: str, shuffle: bool = False) -> ExactMatch:
        return exact_match(
            model,
            processor,
            questions_of(task, files),
            files.images,
            max_new_tokens=MAX_NEW_TOKENS,
            batch_size=32,
            shuffle_images=shuffle,
        )

    asked = {task: ask(task) for task in options.tasks}
    shuffled = {task: ask(task, shuffle=True).score for task in options.tasks}
    content = {
        "figures": make_figures(asked, shuffled),
        "answers": {
            task: {row.id: row.answer for row in result.rows} for task, result in asked.items()
        },
    }
    options.out.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def make_figures(asked: dict[str, ExactMatch], shuffled: dict[str, float]) -> dict[str, Any]:
    """Return the report's figures by name, and under `shown` some rows of every task.

    Args:
        asked: the results by task.
        shuffled: the scores with other questions' images, by task.
    """
    return {
        **{f"{task}_exact_match": result.score for task, result in asked.items()},
        **{f"{task}_shuffled_exact_match": score for task, score in shuffled.items()},
        **{f"{task}_questions": len(result.rows) for task, result in asked.items()},
        "shown": [asdict(row) for result in asked.values() for row in result.rows[:SHOWN_PER_TASK]],
    }


if __name__ == "__main__":
    main()

"""`python -m launch.quickstart.evaluate`: score the exported model in a process of its own.

Nothing of NeMo, Megatron-Core or the CPU backend is loaded here: what answers is the exported
directory in transformers.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from evaluation.exact_match import ExactMatch, exact_match
from evaluation.generation import load
from launch.quickstart.digits import digit_files

MAX_NEW_TOKENS = 16
SHOWN_PER_TASK = 6


def main() -> None:
    """Ask all questions and write the scores with some answers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hf", required=True)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    options = parser.parse_args()
    files = digit_files(options.data)
    model, processor = load(options.hf)

    def ask(questions: Path, shuffle: bool = False) -> ExactMatch:
        return exact_match(
            model,
            processor,
            questions,
            files.images,
            max_new_tokens=MAX_NEW_TOKENS,
            batch_size=32,
            shuffle_images=shuffle,
        )

    singles, strips = ask(files.validation_singles), ask(files.validation_strips)
    result = {
        "single_exact_match": singles.score,
        "strip3_exact_match": strips.score,
        "single_shuffled_exact_match": ask(files.validation_singles, shuffle=True).score,
        "strip3_shuffled_exact_match": ask(files.validation_strips, shuffle=True).score,
        "single_questions": len(singles.rows),
        "strip3_questions": len(strips.rows),
        "shown": [asdict(row) for task in (singles, strips) for row in task.rows[:SHOWN_PER_TASK]],
    }
    options.out.write_text(json.dumps(result, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    main()

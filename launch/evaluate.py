"""The verb eval: questions to an exported model."""

from __future__ import annotations

import os
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, TextIO

_PLAIN_INTERVAL_SECONDS = 10.0


class ProgressLine:
    """Shows how many questions are answered.

    On a terminal one line is overwritten; elsewhere, as in a job's log, a line is added every ten
    seconds.

    Args:
        stream: Where to write.
        clock: Returns seconds.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._is_terminal = stream.isatty()
        self._written = clock()

    def __call__(self, done: int, total: int) -> None:
        """Show that `done` of `total` questions are answered."""
        text = f"answered {done}/{total}"
        if self._is_terminal:
            self._stream.write("\r" + text + ("\n" if done == total else ""))
        elif self._clock() - self._written >= _PLAIN_INTERVAL_SECONDS:
            self._written = self._clock()
            self._stream.write(text + "\n")
        self._stream.flush()


def evaluate(options: Namespace) -> dict[str, Any]:
    """Run a task over an exported directory with transformers alone, on a GPU where there is one.

    Args:
        options: The verb's options.

    Returns:
        `score` (0 to 1), `questions` (their number) and `rows` (each question with its answer).

    Raises:
        ValueError: The task, the directory or the data cannot be used.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import torch

    from evaluation.generation import load, open_processor
    from evaluation.tasks import get_task

    task = get_task(options.task)
    # What cannot work is refused before the weights are read, which takes minutes.
    family, processor = open_processor(options.hf, options.trust_remote_code)
    samples = task.prepare(
        options.data,
        options.image_folder,
        limit=options.limit,
        shuffle_images=options.shuffle_images,
    )
    task.check(family, processor, samples)
    on_gpu = torch.cuda.is_available()
    model, processor = load(
        options.hf,
        device="cuda" if on_gpu else "cpu",
        dtype=torch.bfloat16 if on_gpu else torch.float32,
        trust_remote_code=options.trust_remote_code,
    )
    result = task.score(model, processor, samples, progress=ProgressLine(sys.stderr))
    rows = [asdict(row) for row in result.rows]
    return {"score": result.score, "questions": len(rows), "rows": rows}

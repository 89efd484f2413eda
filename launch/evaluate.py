"""The verb eval: questions to an exported model."""

from __future__ import annotations

import os
from argparse import Namespace
from typing import Any


def evaluate(options: Namespace) -> dict[str, Any]:
    """Run a task over an exported directory with transformers alone."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from evaluation.generation import load
    from evaluation.tasks import get_task

    task = get_task(options.task)
    model, processor = load(options.hf)
    result = task(
        model,
        processor,
        options.data,
        options.image_folder,
        limit=options.limit,
        shuffle_images=options.shuffle_images,
    )
    return {"score": result.score, "questions": len(result.rows)}

"""The verbs import, assemble, export and verify."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from launch import backend


def import_checkpoint(options: Namespace) -> dict[str, Any]:
    """Import a whole Hugging Face directory."""
    backend.activate()
    from converters.import_hf import import_nvila

    return import_nvila(options.hf, options.out)


def assemble_checkpoint(options: Namespace) -> dict[str, Any]:
    """Put parents and a fresh projector together."""
    backend.activate()
    from converters.assemble import assemble

    return assemble(
        options.llm, options.vision, options.out, projector=options.projector, seed=options.seed
    )


def export_checkpoint(options: Namespace) -> dict[str, Any]:
    """Export a checkpoint, or the newest one of a run."""
    backend.activate()
    from converters.export_hf import export_nvila
    from models.checkpoint_paths import find_checkpoint

    return export_nvila(find_checkpoint(options.ckpt, "ckpt"), options.out, layout=options.layout)


def verify_checkpoint(options: Namespace) -> dict[str, Any]:
    """Compare a Hugging Face directory and a checkpoint."""
    backend.activate()
    from converters.verify import verify_nvila
    from models.checkpoint_paths import find_checkpoint

    result = verify_nvila(
        options.hf, find_checkpoint(options.ckpt, "ckpt"), logits=not options.no_logits
    )
    return result.to_dict() | {"failed": not result.passed}

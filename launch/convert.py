"""The verbs import, assemble, export and verify."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from launch import backend

ASSEMBLY_OPTIONS = {
    "nvila": ("projector", "max_tiles"),
    "llava": ("conversation_template", "image_aspect_ratio", "projector", "image_scales"),
    "llava_jp": ("conversation_template", "image_aspect_ratio", "image_scales"),
}
"""The options of `assemble` that only some families have."""

PROJECTORS = {
    "nvila": ("mlp_downsample_2x2_fix", "mlp_downsample_3x3_fix"),
    "llava": ("mlp2x_gelu", "affine", "mlp_downsample_2x2_fix", "mlp_downsample_3x3_fix"),
}
"""By family; the first is the default."""


def import_checkpoint(options: Namespace) -> dict[str, Any]:
    """Import a whole Hugging Face model."""
    backend.activate(cpu=True)
    from converters import import_hf

    return import_hf.import_checkpoint(
        options.family,
        options.hf,
        options.out,
        request=_request(options),
        conversation_template=options.conversation_template,
    )


def assemble_checkpoint(options: Namespace) -> dict[str, Any]:
    """Put parents and a fresh projector together."""
    backend.activate(cpu=True)
    from converters.assemble import assemble

    return assemble(
        options.llm,
        options.vision,
        options.out,
        _assembly(options),
        seed=options.seed,
        request=_request(options),
    )


def export_checkpoint(options: Namespace) -> dict[str, Any]:
    """Export a checkpoint, or the newest one of a run."""
    from converters import export_hf
    from models.checkpoint_paths import find_checkpoint

    return export_hf.export_checkpoint(
        find_checkpoint(options.ckpt, "ckpt"),
        options.out,
        layout=options.layout,
        lora=options.lora,
        base=options.base,
        request=_request(options),
    )


def verify_checkpoint(options: Namespace) -> dict[str, Any]:
    """Compare a Hugging Face directory and a checkpoint."""
    if not options.no_logits:
        backend.activate(cpu=True)
    from converters import verify
    from models.checkpoint_paths import find_checkpoint

    result = verify.verify_checkpoint(
        options.hf,
        find_checkpoint(options.ckpt, "ckpt"),
        logits=not options.no_logits,
        trust_remote_code=options.trust_remote_code,
        layers=options.layers,
    )
    return result.to_dict() | {"failed": not result.passed}


def _assembly(options: Namespace) -> Any:
    """Build what the family needs; an option of another family is refused, not ignored.

    Raises:
        ValueError: it is given.
    """
    from converters.llava_assembly import LlavaAssembly
    from converters.nvila_assembly import NvilaAssembly

    given = {
        name: value
        for name in {name for names in ASSEMBLY_OPTIONS.values() for name in names}
        if (value := getattr(options, name)) is not None
    }
    allowed = ASSEMBLY_OPTIONS[options.family]
    for name, value in given.items():
        if name not in allowed:
            raise ValueError(
                f"{name}: {value!r} is not for {options.family}; its options are "
                f"{', '.join(allowed)}."
            )
    if "projector" in given:
        _check_projector(options.family, given["projector"])
        given["projector_type"] = given.pop("projector")
    if "image_scales" in given:
        given["image_scales"] = tuple(float(one) for one in given["image_scales"].split(","))
    if options.family in ("llava", "llava_jp"):
        if options.family == "llava_jp":
            given.setdefault("conversation_template", "llava_jp")
        return LlavaAssembly(**given)
    return NvilaAssembly(**given)


def _check_projector(family: str, projector: str) -> None:
    """Refuse a projector that the family does not have.

    Raises:
        ValueError: it does not.
    """
    if projector not in PROJECTORS[family]:
        raise ValueError(
            f"projector: {projector!r} is not for {family}; allowed are "
            f"{', '.join(PROJECTORS[family])}."
        )


def _request(options: Namespace) -> Any:
    from converters.request import Request

    return Request(dtype=options.dtype, jobs=options.jobs, dry_run=options.dry_run)

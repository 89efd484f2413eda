"""A NeMo checkpoint from lazy tensors: weights, context and sums, in a few hundred megabytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from torch.distributed.checkpoint.metadata import MetadataIndex

from converters.checkpoint import write_context
from converters.file_writer import FileTask, write_files
from converters.hashed_file import HashedFile
from converters.lazy import LazyTensor
from converters.manifest import write_manifest
from converters.mapping import refuse_other_shapes
from converters.structure import Structure, structure_of
from converters.torch_dist_writer import Archive, Place, plan_archives, write_description
from models.family_config import FamilyConfig


def fitting_structure(config: FamilyConfig, tensors: Mapping[str, LazyTensor]) -> Structure:
    """Ask the model for its structure and compare the tensors with it.

    Args:
        config: sizes.
        tensors: every Megatron-Core tensor by name; the names must be the model's own.

    Raises:
        ConversionError: tensors of other shapes than the sizes ask for.
    """
    dtype = next(iter(tensors.values())).dtype
    structure = structure_of(config, dtype)
    expected = structure.shapes()
    assert expected.keys() == tensors.keys(), expected.keys() ^ tensors.keys()
    refuse_other_shapes(
        expected,
        {name: tensor.shape for name, tensor in tensors.items()},
        "hf: the tensors do not fit config.json",
    )
    return structure


def write_checkpoint(
    folder: Path,
    config: FamilyConfig,
    tensors: Mapping[str, LazyTensor],
    assets: Path,
    release: Callable[[], None] = lambda: None,
    jobs: int = 1,
) -> None:
    """Write `weights/` and `context/` as NeMo does, and `SHA256SUMS`.

    Args:
        folder: an empty folder.
        config: sizes.
        tensors: every Megatron-Core tensor by name; the names must be the model's own.
        assets: copied to `context/assets`; their config.json names the family.
        release: gives back the memory of what was read for `tensors`.
        jobs: processes that write.

    Raises:
        ConversionError: tensors of other shapes than the sizes ask for.
        ValueError: a source is damaged.
    """
    structure = fitting_structure(config, tensors)
    metadata, archives = plan_archives(tensors, structure.parts, structure.objects)
    weights = folder / "weights"
    weights.mkdir()
    tasks = [
        FileTask(
            path=weights / f"__{number}_0.distcp",
            nbytes=sum(archive.nbytes for archive in load),
            write=partial(_write_archives, load, f"__{number}_0.distcp"),
        )
        for number, load in enumerate(_loads(archives, jobs))
    ]
    places: dict[MetadataIndex, Place] = {}
    sums: dict[Path, str] = {}
    for written in write_files(tasks, jobs, release):
        places |= written.result
        sums[written.path] = written.sha256
    write_description(weights, metadata, places)
    write_context(folder, config, assets)
    write_manifest(folder, sums)


def _loads(archives: Sequence[Archive], count: int) -> list[list[Archive]]:
    """Share archives out, in their order, in runs of about the same size."""
    total = sum(archive.nbytes for archive in archives)
    loads: list[list[Archive]] = [[] for _ in range(count)]
    before = 0
    for archive in archives:
        loads[min(before * count // max(total, 1), count - 1)].append(archive)
        before += archive.nbytes
    return [load for load in loads if load]


def _write_archives(
    archives: Sequence[Archive], name: str, file: HashedFile
) -> dict[MetadataIndex, Place]:
    return {archive.index: archive.write(file, name) for archive in archives}

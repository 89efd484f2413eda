"""Opening data sets of tar shards: what there is, what of it can be read, and in which shares."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml  # type: ignore[import-untyped]
from megatron.energon import SimilarityInterleavedSample, VQASample, WorkerConfig
from megatron.energon.dataset_config import load_config
from megatron.energon.epathlib import EPath
from megatron.energon.flavors.crude import CrudeSample, CrudeWebdataset
from megatron.energon.flavors.webdataset import EmptyDatasetError
from megatron.energon.metadataset import Metadataset, load_dataset
from megatron.energon.metadataset.loader_interface import (
    DatasetBlendMode,
    DatasetLoaderInterface,
)

from datamodules.energon_task import SOURCE, ConversationTask

META_FOLDER = ".nv-meta"
META_FILES = (".info.yaml", "split.yaml", "dataset.yaml")
# What `prepare` writes for training beside the description that Energon's own tools read.
CRUDE_FILE = "crude.yaml"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardSet:
    """The shards of one split of one prepared data set.

    Attributes:
        factory: Energon's data set, not built yet.
        source: The folder of the data set.
        share: Its share in a blend, relative to those of the others.
    """

    factory: Any
    source: str
    share: float

    def __len__(self) -> int:
        return len(self.factory)


def open_shards(
    paths: Sequence[str],
    weights: Sequence[float] | None,
    split: str,
    worker_config: WorkerConfig,
    *,
    training: bool,
    max_samples_per_sequence: int | None = None,
    data_root: str | None = None,
) -> list[ShardSet]:
    """Opens one split of prepared data sets or of metadata sets; reads no sample.

    Args:
        paths: Folders with `.nv-meta`, or files that describe blends.
        weights: Share of each path; None takes the numbers of samples. The shares inside of a
            blend file stay what they are.
        split: The name of the split.
        worker_config: Whose part of the shards is read.
        training: Whether shards are shuffled.
        max_samples_per_sequence: So many samples are read one after the other before another
            slice of the shards is drawn.
        data_root: Where relative paths inside of blend files start; None takes each file's folder.

    Raises:
        ValueError: A data set is missing, not prepared, without this split, or of another kind.
    """
    opened: list[ShardSet] = []
    for number, path in enumerate(paths):
        loader = _find_loader(path, split, data_root)
        inner = _open_loader(loader, path, split, worker_config, training, max_samples_per_sequence)
        if len(paths) > 1:
            total = sum(shards.share for shards in inner)
            whole = sum(len(shards) for shards in inner) if weights is None else weights[number]
            inner = [
                ShardSet(
                    factory=shards.factory,
                    source=shards.source,
                    share=whole * shards.share / total,
                )
                for shards in inner
            ]
        opened += inner
    return opened


def attach(shards: Sequence[ShardSet], task: ConversationTask) -> None:
    """Lets samples carry their source, keeps the parts of crude samples bytes, and lists bad parts.

    Energon decodes images of crude samples by default, all of them and to floating-point numbers.
    """
    for each in shards:
        factory = each.factory
        if isinstance(factory, CrudeWebdataset):
            assert hasattr(factory, "_decoder"), "this version of Energon decodes elsewhere"
            factory._decoder = None
        factory.subflavors = {**(getattr(factory, "subflavors", None) or {}), SOURCE: each.source}
        factory.handler = functools.partial(task.skip_undecodable, each.source)


def _find_loader(path: str, split: str, data_root: str | None) -> DatasetLoaderInterface:
    """Finds the data set, or all that a blend file names."""
    place = EPath(path).absolute()
    if not place.is_file():
        _check_folder(place, split)
        has_crude = (place / META_FOLDER / CRUDE_FILE).is_file()
        return load_dataset(place, **({"dataset_config": CRUDE_FILE} if has_crude else {}))
    root = place.parent if data_root is None else EPath(data_root).absolute()
    if not root.is_dir():
        raise ValueError(f"data_root is {data_root}, but there is no such folder.")
    try:
        return load_config(
            place, default_type=Metadataset, strict=True, default_kwargs={"parent_path": root}
        )
    except FileNotFoundError as error:
        raise ValueError(
            f"The blend {place} names {error}, which is not there or not prepared with `python -m "
            f"launch prepare` or `energon prepare`."
        ) from error
    except (AssertionError, TypeError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"The blend {place} cannot be read: {_in_one_line(error)}.") from error


def _open_loader(
    loader: DatasetLoaderInterface,
    path: str,
    split: str,
    worker_config: WorkerConfig,
    training: bool,
    max_samples_per_sequence: int | None,
) -> list[ShardSet]:
    place = EPath(path).absolute()
    try:
        mode, datasets = loader.get_datasets(
            training=training,
            split_part=split,
            worker_config=worker_config,
            max_samples_per_sequence=max_samples_per_sequence,
            shuffle_over_epochs_multiplier=1,
        )
    except EmptyDatasetError as error:
        raise ValueError(f"The split {split!r} of the data set {place} has no shards.") from error
    except KeyError as error:
        raise ValueError(f"The data set {place} has no {error}, asked for {split!r}.") from error
    except (AssertionError, TypeError, ValueError, yaml.YAMLError) as error:
        # Energon asserts what users wrote into their files.
        raise ValueError(
            f"The data set {place} cannot be opened for the split {split!r}: {_in_one_line(error)}."
        ) from error
    opened = []
    for factory, weight in datasets:
        source = ", ".join(str(folder) for folder in factory.paths)
        _check_sample_type(factory, source)
        share = 1.0 if weight is None else float(weight)
        if mode is DatasetBlendMode.SAMPLE_REPETITIONS:
            share *= len(factory)
        if not share > 0:
            raise ValueError(f"The weight of {source} in {place} is {share}, but must be positive.")
        opened.append(ShardSet(factory=factory, source=source, share=share))
    return opened


def _check_folder(folder: EPath, split: str) -> None:
    if not folder.is_dir():
        raise ValueError(f"There is no data set {folder}: it is neither a folder nor a file.")
    for name in META_FILES:
        if not (folder / META_FOLDER / name).is_file():
            raise ValueError(
                f"The folder {folder} has no {META_FOLDER}/{name}; run `energon prepare {folder}` "
                f"first."
            )
    splits = yaml.safe_load((folder / META_FOLDER / "split.yaml").read_text())
    names = sorted((splits or {}).get("split_parts") or {})
    if split not in names:
        raise ValueError(
            f"The data set {folder} has no split {split!r}, only {', '.join(names) or 'none'}."
        )


_READABLE = (CrudeSample, VQASample, SimilarityInterleavedSample)


def _check_sample_type(factory: Any, source: str) -> None:
    kind = factory.__sample_type__
    if not (isinstance(kind, type) and issubclass(kind, _READABLE)):
        raise ValueError(
            f"The data set {source} holds samples of type {getattr(kind, '__name__', kind)}, but "
            f"only CrudeWebdataset, VQASample and SimilarityInterleavedSample are supported; a "
            f"blend reads a folder made by "
            f"`python -m launch prepare` with dataset_config: {CRUDE_FILE}."
        )


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__

"""Makes a folder of shards a data set of Energon, with Energon's own code.

Two descriptions are written, because no single one serves every reader:
    dataset.yaml   typed (`InterleavedSample`). `energon info` asks for a sample type, `energon
                   preview` for a dataclass, and any task encoder takes typed samples as they are.
                   The loading code is copied beside it, so that the folder can be moved and read
                   where this project is not installed.
    crude.yaml     the files of each sample as they are, for cookers. Training here reads this one:
                   roles, bounds of tiles and undecoded images do not fit into a typed sample.
"""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import sample_loaders.interleaved
from preparation.options import SPLIT_NAMES
from preparation.work_folder import replace_file

TYPED_FILE = "dataset.yaml"
CRUDE_FILE = "crude.yaml"
_LOADER_FILE = "sample_loader.py"
_TYPED = {
    "sample_type": {"__module__": "megatron.energon", "__class__": "InterleavedSample"},
    "part_filter": f"{_LOADER_FILE}:part_filter",
    "sample_loader": f"{_LOADER_FILE}:sample_loader",
}
_CRUDE = {
    "__module__": "megatron.energon",
    "__class__": "CrudeWebdataset",
    "auto_decode": False,
}
_INDEXING_PROCESSES = 8
_SPLIT_SEED = 42


def write_meta(
    folder: Path, counts: Mapping[str, int], shares: Sequence[float], jobs: int, aside: Path
) -> dict[str, list[str]]:
    """Writes `.nv-meta` and the indexes of the shards.

    Args:
        folder: Where the shards are.
        counts: Samples of each shard.
        shares: Of train, val and test.
        jobs: Processes to index with.
        aside: Where files are written before they are renamed.

    Returns:
        The shards of each split.
    """
    import yaml  # type: ignore[import-untyped]
    from megatron.energon.flavors import BaseWebdatasetFactory
    from megatron.energon.flavors.webdataset import MAIN_FOLDER_NAME
    from megatron.energon.flavors.webdataset.structs import WebdatasetSplits
    from megatron.energon.typed_converter import to_json_object

    BaseWebdatasetFactory.prepare_dataset(
        folder,
        list(counts),
        split_parts_ratio=[("train", 1.0)],
        shuffle_seed=None,
        workers=min(jobs, _INDEXING_PROCESSES),
    )
    meta = folder / MAIN_FOLDER_NAME
    info = yaml.safe_load((meta / ".info.yaml").read_text(encoding="utf-8"))
    # Energon prints why a shard cannot be read and goes on without it.
    if info["shard_counts"] != dict(counts):
        wrong = [name for name in counts if info["shard_counts"].get(name) != counts[name]]
        raise RuntimeError(f"Energon counts other samples in {', '.join(wrong[:3])}.")
    splits = split_shards(list(counts), shares)
    content = to_json_object(WebdatasetSplits(split_parts=splits))
    replace_file(meta / "split.yaml", yaml.dump(content).encode("utf-8"), aside)
    loader = Path(sample_loaders.interleaved.__file__)
    replace_file(meta / _LOADER_FILE, loader.read_bytes(), aside)
    for name, description in ((TYPED_FILE, _TYPED), (CRUDE_FILE, _CRUDE)):
        replace_file(meta / name, yaml.dump(description, sort_keys=False).encode("utf-8"), aside)
    return splits


def split_shards(names: Sequence[str], shares: Sequence[float]) -> dict[str, list[str]]:
    """Deals shards out to train, val and test, spread over the source and always the same.

    Energon's own rule rounds each share down and may leave shards to nobody. Here every shard is
    somewhere, and a split with a share gets a shard as long as train, served first, has one.

    Args:
        names: The shards in the order of the source.
        shares: Of train, val and test; missing ones are 0.
    """
    shares = [*shares, 0.0, 0.0][: len(SPLIT_NAMES)]
    total = sum(shares)
    wanted = [len(names) * share / total for share in shares]
    counts = [0] * len(shares)
    for _ in names:
        # The split that lacks most; one without any shard goes before all that have some.
        open_splits = [number for number, share in enumerate(wanted) if share > 0]
        chosen = max(
            open_splits,
            key=lambda number: (counts[number] == 0, wanted[number] - counts[number], -number),
        )
        counts[chosen] += 1
    shuffled = random.Random(_SPLIT_SEED).sample(list(names), len(names))
    place = {name: number for number, name in enumerate(names)}
    result: dict[str, list[str]] = {}
    first = 0
    for split, count in zip(SPLIT_NAMES, counts, strict=True):
        result[split] = sorted(shuffled[first : first + count], key=place.__getitem__)
        first += count
    return result

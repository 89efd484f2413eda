"""Writes tar shards and prepares them with Energon's own code."""

import io
import json
from pathlib import Path

import numpy as np
import yaml
from megatron.energon.flavors import BaseWebdatasetFactory
from PIL import Image
from webdataset import TarWriter

CRUDE = {"__module__": "megatron.energon", "__class__": "CrudeWebdataset"}
VQA = {
    "sample_type": {"__module__": "megatron.energon", "__class__": "VQASample"},
    "part_filter": "sample_loader.py:part_filter",
    "sample_loader": "sample_loader.py:sample_loader",
}
MATCHED = VQA | {
    "sample_type": {
        "__module__": "megatron.energon",
        "__class__": "SimilarityInterleavedSample",
    },
    "sample_loader": "sample_loader.py:matched_loader",
}
# What the tutorial tells users to write.
SAMPLE_LOADER = """
def sample_loader(raw: dict) -> dict:
    context = [entry["value"] for entry in raw["json"] if entry["from"] == "human"]
    answers = [entry["value"] for entry in raw["json"] if entry["from"] == "gpt"]
    return dict(image=raw["jpg"], context=context, answers=answers, answer_weights=None)


def part_filter(part: str) -> bool:
    return part in ("jpg", "json")


def matched_loader(raw: dict) -> dict:
    texts = [entry["value"].replace("<image>\\n", "") for entry in raw["json"]]
    return dict(images=[raw["jpg"]], texts=texts, matched_text_indices=[1])
"""


def encoded_image(seed: int, form: str = "JPEG", size: tuple[int, int] = (56, 56)) -> bytes:
    """The file of an image of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form)
    return stream.getvalue()


def conversation(name: str, image: bool = True) -> list[dict]:
    """A question, with an image, and an answer."""
    question = f"<image>\nWhat is {name}?" if image else f"What is {name}?"
    return [{"from": "human", "value": question}, {"from": "gpt", "value": f"It is {name}."}]


def good_sample(number: int, name: str = "s") -> dict:
    """A sample in the form of the tutorial; every third one has no image."""
    key = f"{name}{number:04d}"
    if number % 3 == 2:
        return {"__key__": key, "json": json.dumps(conversation(key, image=False)).encode()}
    return {
        "__key__": key,
        "json": json.dumps(conversation(key), ensure_ascii=False).encode(),
        "jpg": encoded_image(number),
    }


def write_set(
    folder: Path,
    splits: dict[str, list[dict]],
    config: dict = CRUDE,
    per_shard: int = 5,
    prepared: bool = True,
) -> str:
    """Writes the samples of each split to shards of their own, and prepares the folder."""
    folder.mkdir(parents=True)
    patterns, names = [], []
    for split, samples in splits.items():
        for shard, first in enumerate(range(0, len(samples), per_shard)):
            name = f"{split}-{shard}.tar"
            with TarWriter(str(folder / name)) as writer:
                for sample in samples[first : first + per_shard]:
                    writer.write(sample)
            names.append(name)
        patterns.append((split, f"{split}-[0-9]+.tar"))
    if not prepared:
        return str(folder)
    BaseWebdatasetFactory.prepare_dataset(
        folder, names, split_parts_patterns=patterns, workers=1, shuffle_seed=None
    )
    (folder / ".nv-meta" / "dataset.yaml").write_text(yaml.safe_dump(config))
    (folder / ".nv-meta" / "sample_loader.py").write_text(SAMPLE_LOADER)
    return str(folder)


def write_blend(file: Path, splits: dict[str, list[tuple[str, float]]]) -> str:
    """Writes a metadata set that blends folders by weight."""
    content = {
        "__module__": "megatron.energon",
        "__class__": "MetadatasetV2",
        "splits": {
            split: {"blend": [{"path": path, "weight": weight} for path, weight in parts]}
            for split, parts in splits.items()
        },
    }
    file.write_text(yaml.safe_dump(content))
    return str(file)


TRAIN, VALIDATION = 23, 11
MICRO_BATCH = 2


def keys_of(folder: str, split: str, names: list[str], per_shard: int = 5) -> list[str]:
    return [
        f"{folder}/{split}-{number // per_shard}.tar/{name}" for number, name in enumerate(names)
    ]


def read(loader, count: int) -> list[list[str]]:
    """The sample keys of so many micro-batches."""
    batches = iter(loader)
    return [next(batches)["sample_keys"] for _ in range(count)]


def flat(batches: list[list[str]]) -> list[str]:
    return [key for batch in batches for key in batch]

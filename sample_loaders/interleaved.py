"""From the parts of a shard's sample to text and images in turns, as Energon's tools show them.

`prepare` copies this file into the data set, and Energon runs the copy by its path: it must need
nothing of this project.
"""

import re
from typing import Any

_PLACEHOLDER = "<image>"


def part_filter(part: str) -> bool:
    """Takes the record and all images."""
    return not part.startswith("__")


def sample_loader(parts: dict[str, Any]) -> dict[str, Any]:
    """Makes the field of an `InterleavedSample`.

    Args:
        parts: By name the record, decoded, and the images, decoded to tensors.

    Returns:
        `sequence`: the text with each image at its placeholder; what one side of a conversation
        says is a text of its own and starts with the name of that side.
    """
    record = parts["json"]
    if "document" in record:
        texts = [record["document"]]
    else:
        texts = [f"{turn['from']}: {turn['value']}" for turn in record["conversations"]]
    names = list(record.get("images", ()))
    sequence: list[Any] = []
    for text in texts:
        for piece in re.split(f"({_PLACEHOLDER})", text):
            if piece == _PLACEHOLDER and names:
                sequence.append(parts[names.pop(0)])
            elif piece:
                sequence.append(piece)
    return {"sequence": [*(parts[name] for name in names), *sequence]}

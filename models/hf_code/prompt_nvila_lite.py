"""Image placeholders in text and image positions in token sequences.

An image passes through three forms. The user writes one placeholder per image; the text that is
tokenised has one placeholder and a newline per *tile*; the sequence that the model reads has, per
tile, the positions of its vision features, the newline that closes the tile, and the newline of the
text.
"""

from collections.abc import Sequence

import numpy as np

IMAGE_TOKEN = "<image>"


def expand_images(text: str, tiles_per_image: Sequence[int]) -> str:
    """Replaces every placeholder by one placeholder and a newline for each tile of its image.

    One newline directly after a placeholder is absorbed: a text gives the same result with and
    without it.

    Args:
        text: Text with one placeholder per image, anywhere.
        tiles_per_image: Number of tiles of each image, thumbnails included, in order.

    Raises:
        ValueError: If the number of placeholders is not the number of images.
    """
    first, *following = text.split(IMAGE_TOKEN)
    if len(following) != len(tiles_per_image):
        raise ValueError(
            f"the text has {len(following)} {IMAGE_TOKEN} placeholders for {len(tiles_per_image)} "
            "images: there must be exactly one placeholder for every image"
        )
    parts = [first]
    for tiles, rest in zip(tiles_per_image, following, strict=True):
        parts += [f"{IMAGE_TOKEN}\n" * tiles, rest.removeprefix("\n")]
    return "".join(parts)


def expand_tile_tokens(
    ids: Sequence[int] | np.ndarray,
    image_token_id: int,
    newline_token_id: int,
    tokens_per_tile: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Gives every tile its positions: those of its features and one newline that closes it.

    Args:
        ids: Token ids [length] with one image id per tile.
        image_token_id: Id of the placeholder.
        newline_token_id: Id of a single newline.
        tokens_per_tile: Number of vision features of one tile.

    Returns:
        The ids int64 [longer], where each image id became ``tokens_per_tile`` image ids and one
        newline id, and the position int64 [longer] in ``ids`` from which each of them came.
    """
    ids = np.asarray(ids, dtype=np.int64)
    is_tile = ids == image_token_id
    widths = np.where(is_tile, tokens_per_tile + 1, 1)
    source_index = np.repeat(np.arange(len(ids)), widths)
    expanded = ids[source_index]
    expanded[np.cumsum(widths)[is_tile] - 1] = newline_token_id
    return expanded, source_index


def tokens_per_tile(image_size: int, patch_size: int, downsample: int) -> int:
    """Counts the vision features of a tile after the space-to-channel step.

    Args:
        image_size: Side of a tile in pixels.
        patch_size: Side of a patch in pixels.
        downsample: Patches merged along each axis; an incomplete block at the edge counts as one.
    """
    side = -(-(image_size // patch_size) // downsample)
    return side * side

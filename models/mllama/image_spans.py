"""Which positions of a text attend to which of its images.

An image is seen from its own position up to the next image. Images that stand directly one after
the other are seen together: all of them up to the end of the text that follows the last one.
"""

import numpy as np


def image_spans(ids: np.ndarray, image_token_id: int) -> np.ndarray:
    """Finds the positions that attend to each image.

    Args:
        ids: Token ids int64 [length] of one sample, without padding.
        image_token_id: Id that stands for an image; nothing else has it.

    Returns:
        int64 [images, 2]: the first position and the one after the last, never beyond the sample.
    """
    starts = np.flatnonzero(ids == image_token_id)
    followed_by_image = np.append(ids[1:] == image_token_id, False)[starts]
    ends = np.append(starts[1:], len(ids))[: len(starts)]
    # From the back, because an image takes over the end of the one that directly follows it.
    for number in range(len(starts) - 2, -1, -1):
        if followed_by_image[number]:
            ends[number] = ends[number + 1]
    return np.stack([starts, ends], axis=1).astype(np.int64)

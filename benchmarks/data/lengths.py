"""Lengths of samples like those of llava-instruct-ja: 156,000 answers about photographs of COCO.

Text: the three kinds of LLaVA-Instruct (58,000 conversations, 23,000 descriptions, 77,000 questions
that need reasoning). Their published files have 126 MB, 20.5 MB and 79.6 MB; less what JSON takes,
at 4.3 bytes for each token of English and 1.4 tokens of Japanese for each of those, that is a mean
of 540, 230 and 270 tokens. Lengths around a mean are drawn from a log-normal distribution.
Photographs have 640 pixels on the longer side; most are 4:3 or 3:2.
"""

import numpy as np

from models.hf_code.prompt_nvila_lite import tokens_per_tile
from models.hf_code.tiling_nvila_lite import tile_count

SEED = 2026
KINDS = ((58_000, 540), (23_000, 230), (77_000, 270))  # samples, mean tokens
SPREAD = 0.4  # standard deviation of a length's logarithm
PHOTOGRAPHS = (((640, 480), 0.5), ((640, 427), 0.2), ((480, 640), 0.18), ((427, 640), 0.06))
PHOTOGRAPHS += (((500, 375), 0.03), ((640, 640), 0.02), ((640, 360), 0.01))
TILE_SIZE, PATCH_SIZE, MAX_TILES = 448, 14, 12
FAMILIES = ("nvila 2x2", "nvila 3x3", "mllama")


def draw_lengths(family: str, samples: int, seq_length: int) -> list[int]:
    """Returns the positions of each sample, which are at most `seq_length`.

    An image that would not fit gets a smaller grid, as the encoder does it.
    """
    random = np.random.default_rng(SEED)
    shares = np.array([count for count, _ in KINDS], dtype=float)
    means = np.array([mean for _, mean in KINDS])
    mean = means[random.choice(len(KINDS), samples, p=shares / shares.sum())]
    text = np.rint(mean * random.lognormal(-(SPREAD**2) / 2, SPREAD, samples)).astype(int)
    sizes, parts = zip(*PHOTOGRAPHS, strict=True)
    pictures = random.choice(len(sizes), samples, p=parts)
    if family == "mllama":
        return [min(int(length) + 1, seq_length) for length in text]
    side = {"nvila 2x2": 2, "nvila 3x3": 3}[family]
    # A tile closes with a newline, and is a line of the text.
    per_tile = tokens_per_tile(TILE_SIZE, PATCH_SIZE, side) + 2
    grids = [
        [tile_count(*size, TILE_SIZE, most) * per_tile for most in range(MAX_TILES, 0, -1)]
        for size in sizes
    ]
    return [
        next(
            (int(length) + grid for grid in grids[picture] if length + grid <= seq_length),
            seq_length,
        )
        for length, picture in zip(text, pictures, strict=True)
    ]

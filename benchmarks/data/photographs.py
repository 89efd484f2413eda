"""Images like photographs, made here: soft shapes, sensor noise, and the hard edges of text."""

import io

import numpy as np
from PIL import Image, ImageDraw

WAVES, WORDS = 6, 30


def photograph(width: int, height: int, seed: int = 0) -> Image.Image:
    random = np.random.default_rng(seed)
    across = np.arange(width, dtype=np.float32) / width
    down = np.arange(height, dtype=np.float32)[:, None] / height
    levels = np.full((height, width, 3), 128, dtype=np.float32)
    for channel in range(3):
        for _ in range(WAVES):
            columns, rows, phase = random.uniform(0.5, 12, 3)
            wave = np.sin(2 * np.pi * (columns * across + rows * down) + phase)
            levels[..., channel] += random.uniform(5, 25) * wave
    levels += random.normal(0, 6, levels.shape)
    image = Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for number in range(WORDS):
        place = random.integers(0, width), random.integers(0, height)
        colour = tuple(int(level) for level in random.integers(0, 256, 3))
        draw.text(place, f"Edges of text {number}", fill=colour, font_size=random.integers(10, 40))
    return image


def jpeg(image: Image.Image, quality: int = 90) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return stream.getvalue()

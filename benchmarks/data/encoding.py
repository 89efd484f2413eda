"""Samples per second and core: decode, tile, tokenise and pack, beside the limit and other paths.

The limit is the JPEG decode and the resize alone: Pillow decodes, and one call of torch's integer
resize makes the grid, another the thumbnail. All ways run in turns in one process and one thread;
each is as fast as its fastest call, in seconds of CPU.
"""

import io
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.data.assets import MLLAMA_SIDE, NVILA_SIDE, write_mllama, write_nvila
from benchmarks.data.photographs import jpeg, photograph
from benchmarks.data.published import Way, mllama_published, nemo_ways, nvila_published
from datamodules.packing import Room, fill_row
from datamodules.sample_encoder import open_encoder
from models.hf_code.tiling_nvila_lite import choose_grid
from models.mllama.tiling import choose_canvas, fitted_size
from sample_loaders.conversation import ConversationSample, parse_llava

SIZES = ((640, 480), (1280, 960))
TURNS, CALLS = 6, 5
SEQ_LENGTH = 8_192
MAX_TILES = 12
TEXT = {
    "question": "この写真には何が写っていますか。場所や人の様子も詳しく説明してください。",
    "answer": "写真には、公園の道を歩く二人と一匹の犬が写っています。奥には噴水が見えます。" * 3,
}


def limit(data: bytes, mode: str, sizes: Sequence[tuple[int, int]]) -> Way:
    def decode_and_resize() -> Any:
        pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(data))))
        planes = pixels.permute(2, 0, 1)[None]
        return [
            torch.nn.functional.interpolate(planes, size=(height, width), mode=mode, antialias=True)
            for width, height in sizes
        ]

    return decode_and_resize


def ours(sample: ConversationSample, data: bytes, assets: Path, **options: Any) -> Way:
    encoder = open_encoder(str(assets), SEQ_LENGTH, **options)
    encoder.prepare()
    collator = encoder.collator(8, None)

    def store(name: str) -> io.BytesIO:
        return io.BytesIO(data)

    def encode_and_pack() -> Any:
        plan = encoder.plan(sample, store)
        row = fill_row([plan.length], [plan.tiles], Room(positions=SEQ_LENGTH))
        return collator.packed([[encoder.decode(plan, store) for _ in row]])

    return encode_and_pack


def nvila_ways(
    sample: ConversationSample, data: bytes, size: tuple[int, int], max_tiles: int, assets: Path
) -> dict[str, Way]:
    columns, rows = choose_grid(*size, NVILA_SIDE, max_tiles)
    sizes = [(columns * NVILA_SIDE, rows * NVILA_SIDE)]
    if columns * rows > 1:
        sizes.append((NVILA_SIDE, NVILA_SIDE))
    encoder: Any = open_encoder(str(assets), SEQ_LENGTH, max_tiles)
    return {
        "ours": ours(sample, data, assets, max_tiles=max_tiles),
        "ours, exact": ours(sample, data, assets, max_tiles=max_tiles, image_resize="exact"),
        "limit": limit(data, "bicubic", sizes),
        "published": nvila_published(encoder, sample, data, max_tiles, assets),
    }


def mllama_ways(
    sample: ConversationSample, data: bytes, size: tuple[int, int], assets: Path
) -> dict[str, Way]:
    canvas = choose_canvas(*size, MLLAMA_SIDE, 4)
    return {
        "ours": ours(sample, data, assets),
        "ours, exact": ours(sample, data, assets, image_resize="exact"),
        "limit": limit(data, "bilinear", [fitted_size(*size, MLLAMA_SIDE, canvas)]),
        "published": mllama_published(TEXT, data, assets),
    }


def milliseconds(ways: Mapping[str, Way]) -> dict[str, float]:
    """Returns the CPU time of the fastest call of each way.

    A turn is several calls: in training, too, the memory that one call gave back is the next one's.
    """
    fastest = dict.fromkeys(ways, float("inf"))
    for _ in range(TURNS):
        for name, way in ways.items():
            for _ in range(CALLS):
                started = time.thread_time()
                way()
                fastest[name] = min(fastest[name], (time.thread_time() - started) * 1e3)
    return fastest


def report(title: str, ways: Mapping[str, Way]) -> None:
    times = milliseconds(ways)
    print(f"\n{title}\n  {'way':20}{'ms':>8}{'samples/s':>11}{'ours is':>9}")
    for name, value in times.items():
        print(f"  {name:20}{value:8.2f}{1000 / value:11.1f}{value / times['ours']:8.2f}x")


def main() -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    record = {
        "image": "photograph.jpg",
        "conversations": [
            {"from": "human", "value": f"<image>\n{TEXT['question']}"},
            {"from": "gpt", "value": TEXT["answer"]},
        ],
    }
    sample = parse_llava(record, key="k", source="s")
    images = {f"{width}x{height}.jpg": jpeg(photograph(width, height)) for width, height in SIZES}
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        nvila, mllama = write_nvila(folder / "nvila"), write_mllama(folder / "mllama")
        nemo = nemo_ways(TEXT, images, nvila, mllama, folder)
        torch.set_num_threads(1)
        for size, (name, data) in zip(SIZES, images.items(), strict=True):
            stock = nemo[name]
            for max_tiles, title in ((MAX_TILES, "12 tiles and thumbnail"), (1, "one tile")):
                ways = nvila_ways(sample, data, size, max_tiles, nvila)
                if max_tiles == 1:
                    ways["NeMo NeVA preloaded"] = stock["NeVA preloaded"]
                report(f"nvila, {title}, {name}", ways)
            ways = mllama_ways(sample, data, size, mllama)
            ways["NeMo preloaded"] = stock["MLlama preloaded"]
            ways["NeMo Energon"] = stock["MLlama Energon"]
            report(f"mllama, {name}", ways)


if __name__ == "__main__":
    main()

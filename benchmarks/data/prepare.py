"""MB/s of `prepare` beside `tar` and the tutorial's ShardWriter loop, over the same files.

Every command is a fresh process, and its time includes its start; how long `prepare` takes for a
single sample is told apart, and the last column leaves it out. `prepare` checks, hashes and decodes
every image; the others copy. The source is read once before, so that all find it cached,
and is large enough that there are several shards for each process.

    python -m benchmarks.data.prepare [MEGABYTES]
"""

import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

ROUNDS = 3
SAMPLES_PER_SHARD = 1000
WIDTH, HEIGHT = 640, 480
DISTINCT = 40
SHARD_WRITER = """
import json, os, sys
import webdataset as wds
source, out = sys.argv[1:]
os.mkdir(out)
with open(os.path.join(source, "data.json"), encoding="utf-8") as file:
    entries = json.load(file)
with wds.ShardWriter(os.path.join(out, "instruction-%d.tar"), maxcount=10000, verbose=0) as writer:
    for entry in entries:
        with open(os.path.join(source, entry["image"]), "rb") as file:
            image = file.read()
        text = json.dumps(entry["conversations"], ensure_ascii=False).encode("utf-8")
        writer.write({"__key__": entry["id"], "jpg": image, "json": text})
"""


def photograph(random: np.random.Generator) -> Image.Image:
    """A picture that compresses about as a photograph does: gradients, edges, some noise."""
    coarse = random.integers(0, 256, (8, 10, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for _ in range(30):
        x, y, size = random.integers(0, WIDTH), random.integers(0, HEIGHT), random.integers(5, 90)
        colour = tuple(int(value) for value in random.integers(0, 256, 3))
        draw.ellipse((x, y, x + size, y + size), fill=colour)
    image = image.filter(ImageFilter.GaussianBlur(0.8))
    noise = random.normal(0, 6, (HEIGHT, WIDTH, 3))
    return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))


def write_source(folder: Path, wanted_bytes: int) -> int:
    """Writes a LLaVA source of different files and returns its size in bytes, or a little more."""
    random = np.random.default_rng(0)
    files = []
    for _ in range(DISTINCT):
        stream = io.BytesIO()
        photograph(random).save(stream, "JPEG", quality=90)
        files.append(stream.getvalue())
    (folder / "images").mkdir(parents=True)
    entries, size, number = [], 0, 0
    while size < wanted_bytes:
        # Bytes behind the end of a JPEG make the files differ, and no decoder minds them.
        data = files[number % DISTINCT] + number.to_bytes(4, "little")
        name = f"images/{number:06d}.jpg"
        (folder / name).write_bytes(data)
        size += len(data)
        turns = [
            {"from": "human", "value": "<image>\n画像には何が写っていますか?"},
            {"from": "gpt", "value": f"{number}枚目の写真です。" * 20},
        ]
        entries.append({"id": f"{number:06d}", "image": name, "conversations": turns})
        number += 1
    content = json.dumps(entries, ensure_ascii=False)
    (folder / "data.json").write_text(content, encoding="utf-8")
    return size


def commands(source: Path, out: Path) -> dict[str, list[str]]:
    launch = [sys.executable, "-m", "launch", "prepare", str(source / "data.json")]
    launch += ["--format", "llava", "--image-folder", str(source), "--out", str(out)]
    launch += ["--samples-per-shard", str(SAMPLES_PER_SHARD)]
    return {
        "tar cf": ["tar", "cf", str(out), "-C", str(source), "images", "data.json"],
        "ShardWriter loop": [sys.executable, "-c", SHARD_WRITER, str(source), str(out)],
        "prepare --jobs 1": [*launch, "--jobs", "1"],
        f"prepare --jobs {os.cpu_count()}": [*launch, "--jobs", str(os.cpu_count())],
    }


def measure(command: list[str], out: Path) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.sync()
    seconds = time.perf_counter() - started
    if out.is_dir():
        shutil.rmtree(out)
    else:
        out.unlink()
    return seconds


def main() -> None:
    megabytes = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    with tempfile.TemporaryDirectory() as folder:
        source, single, out = (Path(folder) / name for name in ("source", "single", "out"))
        size = write_source(source, megabytes * 1_000_000)
        write_source(single, 1)
        named = commands(source, out)
        alone = commands(single, out)["prepare --jobs 1"]
        seconds: dict[str, list[float]] = {name: [] for name in named}
        start = []
        for _ in range(ROUNDS):
            for name, command in named.items():
                seconds[name].append(measure(command, out))
            start.append(measure(alone, out))
    start_seconds = statistics.median(start)
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"{size / 1e6:.0f} MB of {WIDTH} x {HEIGHT} JPEG, median of {ROUNDS} rounds")
    print(f"prepare of a single sample: {start_seconds:.1f} s")
    for name, taken in middle.items():
        ratio = middle["ShardWriter loop"] / taken
        line = f"{name:20} {size / 1e6 / taken:7.1f} MB/s   {ratio:.2f} x ShardWriter"
        if name.startswith("prepare"):
            line += f"   {size / 1e6 / (taken - start_seconds):.1f} MB/s after its start"
        print(line)


if __name__ == "__main__":
    main()

"""Share of real tokens in packed rows, and what packing costs a sample, beside NeMo's two packers.

Ours takes a row at a time from a buffer that is filled up again. NeMo's take whole lists: buffers
of the same size, one after the other, or all samples at once, which training on a stream cannot do.
The bound is what no packer can exceed: two samples of more than half a row never share one.
"""

import importlib.util
import statistics
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from benchmarks.data.lengths import FAMILIES, draw_lengths
from datamodules.packing import Room, fill_row

SAMPLES = 3_000
SEQ_LENGTHS = (2_048, 4_096, 8_192)
BUFFERS = (64, 128)
ROUNDS = 3

Rows = list[list[int]]
Pack = Callable[[list[int], int], Rows]


def load_nemo(file: str) -> ModuleType:
    """Loads one file of NeMo without the packages around it, whose import takes half a minute."""
    nemo = importlib.util.find_spec("nemo")
    assert nemo is not None
    assert nemo.submodule_search_locations
    path = Path(nemo.submodule_search_locations[0]) / file
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pack_stream(buffer_size: int) -> Pack:
    """Packs as training does, until no sample is left to fill the buffer up with."""

    def pack(lengths: list[int], seq_length: int) -> Rows:
        room, coming = Room(positions=seq_length), deque(lengths)
        waiting = [coming.popleft() for _ in range(buffer_size)]
        rows = []
        while True:
            chosen = fill_row(waiting, [0] * len(waiting), room)
            rows.append([waiting[number] for number in chosen])
            for number in reversed(chosen):
                del waiting[number]
            if len(coming) < len(chosen):
                return rows
            waiting.extend(coming.popleft() for _ in chosen)

    return pack


def pack_lists(packer: Pack, size: int | None) -> Pack:
    def pack(lengths: list[int], seq_length: int) -> Rows:
        step = size or len(lengths)
        parts = (lengths[first : first + step] for first in range(0, len(lengths), step))
        return [row for part in parts for row in packer(part, seq_length)]

    return pack


def bound(lengths: list[int], seq_length: int) -> float:
    alone = sum(length > seq_length // 2 for length in lengths)
    return sum(lengths) / (max(alone, sum(lengths) / seq_length) * seq_length)


def packers() -> dict[str, Pack]:
    first_fit = load_nemo("utils/sequence_packing_utils.py").first_fit_decreasing
    knapsack = load_nemo("collections/vlm/data/utils.py").greedy_knapsack
    ways: dict[str, Pack] = {f"ours, {size}": pack_stream(size) for size in BUFFERS}
    for size in (*BUFFERS, None):
        ways[f"first fit, {size or 'all'}"] = pack_lists(first_fit, size)
        ways[f"knapsack, {size or 'all'}"] = pack_lists(
            lambda lengths, seq_length: knapsack(lengths, lengths, seq_length), size
        )
    return ways


def main() -> None:
    ways = packers()
    print(
        f"{SAMPLES} samples; real tokens, and microseconds of CPU per sample (fastest of {ROUNDS})"
    )
    print(f"{'':20}" + "".join(f"{seq_length:>16,}" for seq_length in SEQ_LENGTHS))
    for family in FAMILIES:
        print(family)
        cells: dict[str, list[str]] = {way: [] for way in ways}
        means, bounds = [], []
        for seq_length in SEQ_LENGTHS:
            lengths = draw_lengths(family, SAMPLES, seq_length)
            microseconds: dict[str, list[float]] = {way: [] for way in ways}
            share = {}
            for _ in range(ROUNDS):
                for way, pack in ways.items():
                    started = time.process_time()
                    rows = pack(lengths, seq_length)
                    used = time.process_time() - started
                    packed = sum(len(row) for row in rows)
                    microseconds[way].append(used / packed * 1e6)
                    share[way] = sum(map(sum, rows)) / (len(rows) * seq_length)
            for way in ways:
                cells[way].append(f"{share[way]:8.2%}{min(microseconds[way]):7.0f}us")
            means.append(f"{statistics.mean(lengths):.0f}")
            bounds.append(f"{bound(lengths, seq_length):8.2%}{'':9}")
        for way, row in {"mean length": means, "bound": bounds, **cells}.items():
            print(f"  {way:18}" + "".join(f"{cell:>16}" for cell in row))


if __name__ == "__main__":
    main()

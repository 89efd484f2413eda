"""Opening a file of a million JSONL rows: seconds and memory, beside reading it with json.

Every way opens the same rows in a process of its own, in turns. Importing is not in the seconds,
but in the peak of the process's memory; what is of the rows stands beside it. The files are in the
page cache.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROWS = 1_000_000
ROUNDS = 3
ANSWER = "写真には、公園の道を歩く二人と一匹の犬が写っています。奥には噴水が見えます。"


def write_rows(path: Path, rows: int) -> None:
    with open(path, "w", encoding="utf-8") as stream:
        for number in range(rows):
            row = {
                "id": f"{number:09}",
                "image": f"{number % 1000:05}/{number:09}.jpg",
                "conversations": [
                    {"from": "human", "value": "<image>\n何が写っていますか。"},
                    {"from": "gpt", "value": ANSWER * (1 + number % 3)},
                ],
            }
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def open_record_index(path: str) -> int:
    from datamodules.record_index import RecordIndex

    return len(RecordIndex(path))


def open_json_lines(path: str) -> int:
    with open(path, encoding="utf-8") as stream:
        return len([json.loads(line) for line in stream])


def open_json_array(path: str) -> int:
    with open(Path(path).with_suffix(".json"), encoding="utf-8") as stream:
        return len(json.load(stream))


WAYS = {
    "record_index": open_record_index,
    "json.loads per line": open_json_lines,
    "json.load of an array": open_json_array,
}


def peak_memory() -> float:
    """Returns the largest resident memory of this process in MB; getrusage gives its parent's."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) / 1000


def measure_here(way: str, path: str) -> None:
    """Prints the seconds, and the memory in MB over that of the process before."""
    import datamodules.record_index  # noqa: F401  # its import is no part of opening

    before = peak_memory()
    started, used = time.perf_counter(), time.process_time()
    rows = WAYS[way](path)
    seconds, used = time.perf_counter() - started, time.process_time() - used
    print(json.dumps([rows, seconds, used, peak_memory(), peak_memory() - before]))


def measure(way: str, path: Path) -> list[float]:
    command = [sys.executable, "-m", "benchmarks.data.index", "--way", way, "--file", str(path)]
    rows, *figures = json.loads(subprocess.check_output(command))
    assert rows == ROWS, f"{way} found {rows} rows"
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--way", choices=list(WAYS), help="measure one way here")
    parser.add_argument("--file")
    arguments = parser.parse_args()
    if arguments.way:
        measure_here(arguments.way, arguments.file)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        write_rows(path, ROWS)
        content = path.read_text(encoding="utf-8").rstrip("\n").replace("\n", ",\n")
        path.with_suffix(".json").write_text(f"[{content}]", encoding="utf-8")
        del content
        size = path.stat().st_size / 1e6
        figures = {way: [] for way in WAYS}
        for _ in range(ROUNDS):
            for way in WAYS:
                figures[way].append(measure(way, path))
    print(f"{ROWS:,} rows, {size:.0f} MB; medians of {ROUNDS} processes")
    print(f"{'way':24}{'seconds':>9}{'CPU s':>8}{'peak MB':>9}{'of it rows':>12}{'ratio':>7}")
    ours = statistics.median(row[0] for row in figures["record_index"])
    for way, rows in figures.items():
        seconds, used, peak, own = (statistics.median(column) for column in zip(*rows, strict=True))
        print(f"{way:24}{seconds:9.2f}{used:8.2f}{peak:9.0f}{own:12.0f}{seconds / ours:7.1f}")


if __name__ == "__main__":
    main()

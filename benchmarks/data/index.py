"""Opening a file of a million JSONL rows: seconds and memory, beside reading it with json.

Every way opens the same file in a process of its own, in turns; what the process takes before it
opens anything is not counted. The file is in the page cache for all of them.
"""

import argparse
import json
import resource
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

    started = RecordIndex(path)
    return len(started)


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


def measure_here(way: str, path: str) -> None:
    """Prints the seconds, and the memory in MB over that of the process before."""
    import datamodules.record_index  # noqa: F401  # its import is no part of opening

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started, used = time.perf_counter(), time.process_time()
    rows = WAYS[way](path)
    seconds, used = time.perf_counter() - started, time.process_time() - used
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps([rows, seconds, used, peak / 1024, (peak - before) / 1024]))


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

"""Seconds and peak memory of import and export, beside `cp` of the same bytes and NeMo's own.

Each command is a process of its own. Before each the system's cache is dropped, where that is
allowed, so that all read from the disk; what is written is synchronised within the time. The
memory of a conversion is told beside that of a model with no weights to speak of, which is what the
interpreter takes with its imports. Shapes that the disk cannot hold twice are left out.

    python -m benchmarks.convert.streaming [FOLDER [SHAPE ...]]
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from converters.hf_weights import weight_files

SHAPES = ("nvila-8b", "mllama-11b", "nvila-15b")
NANO = {"nvila": "nvila-nano", "mllama": "mllama-nano"}
STOCK_SHAPE = "mllama-small"
GIGABYTES = {"nvila-8b": 17, "mllama-11b": 22, "nvila-15b": 31, "mllama-small": 4}
STOCK = """
import sys
from launch import backend
backend.activate(cpu=True)
from nemo.collections import llm, vlm
verb, source, out = sys.argv[1:]
if __name__ == "__main__":
    if verb == "import":
        model = vlm.MLlamaModel(vlm.MLlamaConfig11B())
        llm.import_ckpt(model=model, source=f"hf://{source}", output_path=out)
    else:
        llm.export_ckpt(path=source, target="hf", output_path=out)
"""


@dataclass(frozen=True)
class Measured:
    """One process."""

    seconds: float
    peak_bytes: int


def measure(command: list[str]) -> Measured:
    """Runs a command on a cold cache; the seconds hold a `sync`.

    Raises:
        RuntimeError: it failed.
    """
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        print("(the system's cache could not be dropped)")
    started = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            raise RuntimeError(output.read()[-3000:].decode(errors="replace"))
    os.sync()
    return Measured(time.perf_counter() - started, usage.ru_maxrss * 1024)


def launch(verb: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "launch", verb, *arguments]


def copy(source: Path, target: Path) -> list[str]:
    return ["cp", "--reflink=never", "-r", str(source), str(target)]


def make(shape: str, folder: Path) -> Path:
    source = folder / f"hf_{shape}"
    command = [sys.executable, "-m", "benchmarks.convert.directories", shape, str(source)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return source


def size_of(directory: Path) -> int:
    return sum(path.stat().st_size for path in weight_files(directory))


def both_ways(shape: str, folder: Path) -> tuple[int, dict[str, Measured]]:
    """Imports and exports a directory that is made and removed; at most two copies exist."""
    source = make(shape, folder)
    size = size_of(source)
    print(f"{shape}: {size / 1e9:.2f} GB", flush=True)
    imported, copied, exported = (folder / name for name in ("imported", "copied", "exported"))
    family = shape.partition("-")[0]
    results = {"cp": measure(copy(source, copied))}
    shutil.rmtree(copied)
    results["import"] = measure(
        launch("import", "--family", family, "--hf", str(source), "--out", str(imported))
    )
    shutil.rmtree(source)
    results["export"] = measure(launch("export", "--ckpt", str(imported), "--out", str(exported)))
    shutil.rmtree(imported)
    shutil.rmtree(exported)
    return size, results


def show(results: dict[str, Measured], size: int, base: dict[str, Measured]) -> None:
    for name, found in results.items():
        rate = size / 1e6 / found.seconds
        ratio = results["cp"].seconds / found.seconds
        line = f"  {name:12} {found.seconds:7.1f} s {rate:7.0f} MB/s  {ratio:.2f} x cp"
        if name in base:
            above = (found.peak_bytes - base[name].peak_bytes) / 1e6
            line += f"  {found.peak_bytes / 1e6:.0f} MB, {above:+.0f} MB above a nano model"
            net = found.seconds - base[name].seconds
            line += f", {results['cp'].seconds / net:.2f} x cp without its start"
        print(line, flush=True)


def stock(folder: Path, base: dict[str, Measured]) -> None:
    """NeMo's importer and exporter, beside ours, on what they can do here."""
    source = make(STOCK_SHAPE, folder)
    size = size_of(source)
    print(f"{STOCK_SHAPE}: {size / 1e9:.2f} GB, beside NeMo's own", flush=True)
    script = folder / "stock.py"
    script.write_text(STOCK, encoding="utf-8")
    for verb, ours in (
        ("import", launch("import", "--family", "mllama", "--hf", str(source), "--out", "OUT")),
        ("export", launch("export", "--ckpt", str(folder / "ours_import"), "--out", "OUT")),
    ):
        start = source if verb == "import" else folder / "stock_import"
        out = {name: folder / f"{name}_{verb}" for name in ("ours", "stock")}
        own = measure([str(out["ours"]) if part == "OUT" else part for part in ours])
        try:
            environment = [sys.executable, str(script), verb, str(start), str(out["stock"])]
            theirs = measure(environment)
        except RuntimeError as error:
            print(f"  {verb}: NeMo's failed: {str(error).strip().splitlines()[-1]}")
            continue
        start = base[verb].seconds
        print(
            f"  {verb}: ours {own.seconds:.1f} s, {own.peak_bytes / 1e9:.2f} GB; NeMo's "
            f"{theirs.seconds:.1f} s, {theirs.peak_bytes / 1e9:.2f} GB: "
            f"{theirs.seconds / own.seconds:.1f} x as long; without our start "
            f"{own.seconds - start:.1f} s, {theirs.seconds - start:.1f} s",
            flush=True,
        )


def main() -> None:
    parent = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.gettempdir())
    shapes = sys.argv[2:] or SHAPES
    os.environ["PYTHONPATH"] = os.getcwd()
    with tempfile.TemporaryDirectory(dir=parent) as name:
        folder = Path(name)
        base = {family: both_ways(shape, folder)[1] for family, shape in NANO.items()}
        for family, results in base.items():
            for verb in ("import", "export"):
                found = results[verb]
                print(f"  {family} {verb}: {found.seconds:.1f} s, {found.peak_bytes / 1e6:.0f} MB")
        for shape in shapes:
            needed = 2.05e9 * GIGABYTES[shape]
            if shutil.disk_usage(folder).free < needed:
                print(f"{shape}: left out, it needs {needed / 1e9:.0f} GB of disk")
                continue
            size, results = both_ways(shape, folder)
            show(results, size, base[shape.partition("-")[0]])
        stock(folder, base["mllama"])


if __name__ == "__main__":
    main()

"""Wall time of `python -m launch --help` beside that of a bare interpreter, run in turns."""

import statistics
import subprocess
import sys
import time

ROUNDS = 9
COMMANDS = {"bare interpreter": ["-c", "pass"], "launch --help": ["-m", "launch", "--help"]}


def measure(arguments: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(ROUNDS):
        for name, arguments in COMMANDS.items():
            seconds[name].append(measure(arguments))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, median in medians.items():
        print(f"{name:18} {median:.3f} s (median of {ROUNDS})")
    print(f"ratio {medians['launch --help'] / medians['bare interpreter']:.1f}")


if __name__ == "__main__":
    main()

"""Stand-ins for the rest of `torch.cuda`: one device, idle streams, memory figures."""

import contextlib
import resource
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from cpu_backend.patches import PatchLedger

_PAGE_BYTES = resource.getpagesize()


class Stream:
    """`torch.cuda.Stream` on a CPU, where work is done when the call returns."""

    stream_id = 0
    device_index = 0
    cuda_stream = 0

    def __init__(self, device: Any = None, priority: int = 0, **kwargs: Any) -> None:
        self.device = torch.device("cpu")
        self.priority = priority

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *exception: object) -> None:
        """Nothing was entered."""

    def wait_stream(self, stream: Any) -> None:
        """Returns: there is nothing to wait for."""

    def wait_event(self, event: Any) -> None:
        """Returns: there is nothing to wait for."""

    def record_event(self, event: "Event | None" = None) -> "Event":
        """Returns the event, recorded now."""
        event = event if event is not None else Event()
        event.record(self)
        return event

    def synchronize(self) -> None:
        """Returns: there is nothing to wait for."""

    def query(self) -> bool:
        """Returns True: all work is done."""
        return True


class Event:
    """`torch.cuda.Event` on a CPU: a time on the clock of this process."""

    def __init__(self, enable_timing: bool = False, **kwargs: Any) -> None:
        self.seconds: float | None = None

    def record(self, stream: Stream | None = None) -> None:
        """Takes the time."""
        self.seconds = time.perf_counter()

    def elapsed_time(self, end_event: "Event") -> float:
        """Returns the milliseconds from this event to another one."""
        if self.seconds is None or end_event.seconds is None:
            raise RuntimeError("Both events must be recorded before calculating elapsed time.")
        return (end_event.seconds - self.seconds) * 1000.0

    def wait(self, stream: Stream | None = None) -> None:
        """Returns: there is nothing to wait for."""

    def synchronize(self) -> None:
        """Returns: there is nothing to wait for."""

    def query(self) -> bool:
        """Returns True: all work is done."""
        return True


class DeviceContext:
    """`with torch.cuda.device(...)`: there is one device, so nothing changes."""

    def __init__(self, device: Any = None) -> None:
        self.idx = 0

    def __enter__(self) -> None:
        """Returns nothing, as torch's own."""

    def __exit__(self, *exception: object) -> None:
        """Nothing was entered."""


def _nothing(*args: Any, **kwargs: Any) -> None:
    """Does nothing, where a CUDA call has nothing to do on a CPU."""


def _zero(*args: Any, **kwargs: Any) -> int:
    return 0


def _resident_bytes(device: Any = None) -> int:
    """Returns the memory that this process occupies now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES


def _peak_resident_bytes(device: Any = None) -> int:
    """Returns the most memory that this process has occupied."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _memory_stats(device: Any = None) -> dict[str, int]:
    """Returns the figures of the process under the allocator's names."""
    now, peak = _resident_bytes(), _peak_resident_bytes()
    stats: dict[str, int] = {"num_alloc_retries": 0, "num_ooms": 0}
    for kind in ("allocated", "reserved", "active"):
        stats[f"{kind}_bytes.all.current"] = now
        stats[f"{kind}_bytes.all.peak"] = peak
    return stats


def _memory_information(device: Any = None) -> tuple[int, int]:
    """Returns the machine's free and total memory in bytes."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    kibibytes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return kibibytes["MemAvailable"] * 1024, kibibytes["MemTotal"] * 1024


def _device_properties(device: Any = None) -> SimpleNamespace:
    return SimpleNamespace(
        name="cpu",
        major=0,
        minor=0,
        total_memory=_memory_information()[1],
        multi_processor_count=torch.get_num_threads(),
    )


def _stream_context(stream: Stream | None) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()


def install(ledger: PatchLedger) -> None:
    """Puts the stand-ins into `torch.cuda`, `torch.cuda.memory` and `torch.cuda.nvtx`."""
    current_stream = Stream()
    functions: dict[str, Any] = {
        # False, so that code which asks before using CUDA does not use it; one device, because
        # NeMo seeds the model-parallel generators only where there is one. It is an index, as from
        # CUDA, and cuda_devices.py sends it to the CPU wherever a device is asked for.
        "is_available": lambda: False,
        "device_count": lambda: 1,
        "current_device": _zero,
        "is_initialized": lambda: True,
        "init": _nothing,
        "set_device": _nothing,
        "get_device_name": lambda device=None: "cpu",
        "get_device_capability": lambda device=None: (0, 0),
        "get_device_properties": _device_properties,
        "is_bf16_supported": lambda including_emulation=True: True,
        "synchronize": _nothing,
        "ipc_collect": _nothing,
        "device": DeviceContext,
        "device_of": DeviceContext,
        "Stream": Stream,
        "Event": Event,
        "stream": _stream_context,
        "current_stream": lambda device=None: current_stream,
        "default_stream": lambda device=None: current_stream,
        "set_stream": _nothing,
        "is_current_stream_capturing": lambda: False,
    }
    memory_functions: dict[str, Any] = {
        "empty_cache": _nothing,
        "memory_allocated": _resident_bytes,
        "memory_reserved": _resident_bytes,
        "max_memory_allocated": _peak_resident_bytes,
        "max_memory_reserved": _peak_resident_bytes,
        "memory_stats": _memory_stats,
        "mem_get_info": _memory_information,
        "reset_peak_memory_stats": _nothing,
        "reset_max_memory_allocated": _nothing,
        "set_per_process_memory_fraction": _nothing,
    }
    nvtx_functions = ("range_push", "range_pop", "range_start", "range_end", "mark")
    for name, value in (functions | memory_functions).items():
        ledger.set_attribute(torch.cuda, name, value)
    for name, value in memory_functions.items():
        ledger.set_attribute(torch.cuda.memory, name, value)
    for name in nvtx_functions:
        ledger.set_attribute(torch.cuda.nvtx, name, _zero)

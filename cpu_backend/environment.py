"""Environment variables of the backend, and what a child process needs to switch it on."""

import os
import sys
from pathlib import Path

ENABLING_VARIABLE = "NEMO_VLM_CPU_BACKEND"
SITE_DIRECTORY = Path(__file__).parent / "site"

# Set unless the user has set them.
DEFAULTS = {
    # Megatron-Core asks for it with tensor or sequence parallelism, whatever the device.
    "CUDA_DEVICE_MAX_CONNECTIONS": "1",
    # Where nvcc is installed, extension builds at import ask the (absent) GPU for its
    # architecture and crash on an empty list; naming one keeps them from asking.
    "TORCH_CUDA_ARCH_LIST": "9.0",
}

# Set whatever was there, because the backend cannot work otherwise.
REQUIRED = {
    # Megatron-Core's fused functions are torch.compile'd for CUDA; dynamo off runs them plainly.
    "TORCHDYNAMO_DISABLE": "1",
    # A CPU run must neither see nor occupy a GPU that happens to be there.
    "CUDA_VISIBLE_DEVICES": "",
}


def process_variables() -> dict[str, str]:
    """Returns the variables that this process needs, without those that only children need."""
    defaults = {name: value for name, value in DEFAULTS.items() if name not in os.environ}
    return {**defaults, **REQUIRED}


def child_environment() -> dict[str, str]:
    """Returns the variables with which a Python child process switches the backend on by itself.

    The child pays nothing at its start: an import hook enables the backend right before the first
    import of NeMo, Megatron-Core or Transformer Engine. OMP_NUM_THREADS is left to the caller, who
    knows how many processes share the machine.
    """
    defaults = {name: os.environ.get(name, value) for name, value in DEFAULTS.items()}
    ours = str(SITE_DIRECTORY)
    inherited = [
        entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry != ours
    ]
    python_path = os.pathsep.join([ours, *(entry for entry in inherited if entry)])
    # NeMo-Run starts `python`: it must be this one, also where no environment is activated.
    path = [entry for entry in os.environ.get("PATH", "").split(os.pathsep) if entry]
    interpreter_directory = str(Path(sys.executable).parent)
    if path[:1] != [interpreter_directory]:
        path.insert(0, interpreter_directory)
    return {
        **defaults,
        **REQUIRED,
        ENABLING_VARIABLE: "1",
        "PYTHONPATH": python_path,
        "PATH": os.pathsep.join(path),
    }

"""Runs NeMo and Megatron-Core on a CPU, unmodified, in place of CUDA and Transformer Engine.

Importing this package changes nothing. `enable()` installs the stand-ins (a few seconds: it imports
torch), `disable()` takes every one of them out again. `python -m cpu_backend` runs a script or a
module with the backend on, and `child_environment()` is what a child process needs so that it
switches the backend on by itself before it imports NeMo.
"""

from cpu_backend.environment import child_environment
from cpu_backend.switch import disable, enable, is_enabled

__all__ = ["child_environment", "disable", "enable", "is_enabled"]

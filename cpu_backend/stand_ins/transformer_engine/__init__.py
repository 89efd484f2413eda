"""Transformer Engine's Python interface in plain PyTorch: a reference for the CPU.

The names, the parameters, their attributes and the keys of the state dictionaries are those of
Transformer Engine, so that checkpoints have the layout of those made on a GPU.
"""

from . import common, pytorch

# Megatron-Core 0.14 reads the version to decide which arguments it passes. From 1.13 on it also
# wants the operation-based API (te.pytorch.ops), which it uses only behind an option that is off;
# everything that its default layer specification uses is there in 1.12.
__version__ = "1.12.0"

__all__ = ["common", "pytorch"]

"""What is common to all frameworks: the FP8 recipes."""

from . import recipe

__all__ = ["recipe"]

"""FP8 recipes: plain records. The CPU can describe an FP8 run, not do it."""

import enum
from typing import Any


class Format(enum.Enum):
    """Number formats of FP8: E4M3 throughout, or E4M3 forward and E5M2 backward."""

    E4M3 = "e4m3"
    E5M2 = "e5m2"
    HYBRID = "hybrid"


class Recipe:
    """Base class of all recipes; keeps the arguments as attributes."""

    def __init__(self, **settings: Any) -> None:
        self.__dict__.update(settings)

    def delayed(self) -> bool:
        """Returns whether this is delayed scaling."""
        return isinstance(self, DelayedScaling)


class DelayedScaling(Recipe):
    """Scaling factors from the history of absolute maxima."""


class Float8CurrentScaling(Recipe):
    """Scaling factors from the tensor at hand."""


class MXFP8BlockScaling(Recipe):
    """Scaling factors per block of 32 numbers."""

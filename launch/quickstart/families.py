"""The families that have a quickstart."""

from __future__ import annotations

from launch.quickstart.llava import LLAVA, LLAVA_JP
from launch.quickstart.mllama import MLLAMA
from launch.quickstart.nvila import NVILA

FAMILIES = {family.name: family for family in (NVILA, MLLAMA, LLAVA, LLAVA_JP)}

"""The projector of NVILA-Lite: blocks of patches become channels, and these one vector."""

import torch
from torch import nn
from torch.nn import functional as F


class SpaceToChannel(nn.Module):
    """Merges blocks of ``factor`` x ``factor`` patches into one token; it has no parameters.

    The grid is padded with zeros at the bottom and at the right to a multiple of ``factor``. The
    channels of an output token are ordered (row in the block, column in the block, channel).
    """

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Maps [tiles, side * side, width] to [tiles, merged * merged, factor * factor * width]."""
        tiles, patches, width = features.shape
        side, factor = int(patches**0.5), self.factor
        assert side * side == patches, f"{patches} patches are not a square grid"
        merged = -(-side // factor)
        missing = merged * factor - side
        grid = F.pad(features.view(tiles, side, side, width), (0, 0, 0, missing, 0, missing))
        blocks = grid.view(tiles, merged, factor, merged, factor, width).transpose(2, 3)
        return blocks.reshape(tiles, merged * merged, factor * factor * width)


class NVILALiteProjector(nn.Module):
    """Projector from merged patches to the language model; ``layers`` has the published indices."""

    def __init__(self, vision_width: int, text_width: int, factor: int) -> None:
        super().__init__()
        merged_width = factor * factor * vision_width
        layers: list[nn.Module] = [SpaceToChannel(factor), nn.LayerNorm(merged_width)]
        if factor == 3:
            hidden_width = 3 * vision_width
            layers += [nn.Linear(merged_width, hidden_width), nn.GELU(), nn.LayerNorm(hidden_width)]
            merged_width = hidden_width
        layers += [
            nn.Linear(merged_width, text_width),
            nn.GELU(),
            nn.Linear(text_width, text_width),
        ]
        self.layers = nn.Sequential(*layers)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Maps [tiles, patches, vision_width] to [tiles, tokens_per_tile, text_width]."""
        return self.layers(features)

"""What the encoders of models with image slots (NVILA, LLaVA) share."""

from typing import Generic

import numpy as np

from datamodules.conversation import IGNORED
from datamodules.encoder import Assets, ConversationEncoder, Plan
from datamodules.image_slot_collate import ImageSlotCollator, ImageSlotSample


class ImageSlotEncoder(ConversationEncoder[Assets, Plan, ImageSlotSample], Generic[Assets, Plan]):
    """Makes samples whose tiles are uint8 [n, 3, H, W].

    Args:
        config: How to encode.
    """

    def filler(self, key: str) -> ImageSlotSample:
        """Makes a sample of one pad token, without label and image."""
        side = self.assets.tile_size
        return ImageSlotSample(
            key=key,
            tokens=np.array([self.pad_token_id], dtype=np.int64),
            labels=np.array([IGNORED], dtype=np.int64),
            tiles=np.zeros((0, 3, side, side), dtype=np.uint8),
        )

    def collator(self, pad_to_multiple_of: int, fixed_length: int | None) -> ImageSlotCollator:
        """Makes what joins samples to micro-batches."""
        return ImageSlotCollator(
            pad_token_id=self.pad_token_id,
            pad_to_multiple_of=pad_to_multiple_of,
            fixed_length=fixed_length,
        )

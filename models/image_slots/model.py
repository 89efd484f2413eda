"""Vision tower -> projector -> language model on Megatron-Core."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from megatron.core.enums import ModelType
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.module import MegatronModule

from models.family_config import FamilyConfig
from models.image_slots.language import LanguageModel


class ImageSlotModel(MegatronModule, ABC):
    """One pipeline stage's part of the model.

    The vision tower and the projector live whole on the first stage; tokens arrive with every image
    slot already in place, so lengths are known before anything is encoded. A family says which
    tower and which projector.

    Args:
        config: sizes, freezing and parallel degrees.
        pre_process: this is the first stage (vision, projector, embedding).
        post_process: this is the last stage (output layer, loss).
        vp_stage: virtual pipeline stage.
    """

    def __init__(
        self,
        config: FamilyConfig,
        pre_process: bool = True,
        post_process: bool = True,
        vp_stage: int | None = None,
    ) -> None:
        super().__init__(config=config)
        assert config.language_transformer_config is not None
        assert config.vision_transformer_config is not None
        self.pre_process = pre_process
        self.post_process = post_process
        self.vp_stage = vp_stage
        self.model_type = ModelType.encoder_or_decoder
        self.language_model = LanguageModel(
            config.language_transformer_config, pre_process, post_process, vp_stage
        )
        # Read by Megatron-Core's finalize_model_grads to sum the tied embedding's gradients.
        self.share_embeddings_and_output_weights = (
            self.language_model.share_embeddings_and_output_weights
        )
        self.vision_model: torch.nn.Module | None = None
        self.vision_projection: torch.nn.Module | None = None
        if pre_process:
            self.vision_model = self.build_vision(config)
            self.vision_projection = self.build_projector(config)
        self._freeze()

    @abstractmethod
    def build_vision(self, config: FamilyConfig) -> torch.nn.Module:
        """Build the tower: uint8[n, 3, H, W] -> float[n, patches, width]."""

    @abstractmethod
    def build_projector(self, config: FamilyConfig) -> torch.nn.Module:
        """Build the projector: float[n, patches, width] -> float[n, slots, language width]."""

    def _freeze(self) -> None:
        for frozen, part in (
            (self.config.freeze_language_model, self.language_model),
            (self.config.freeze_vision_model, self.vision_model),
            (self.config.freeze_vision_projection, self.vision_projection),
        ):
            if frozen and part is not None:
                part.requires_grad_(False)

    def shared_embedding_or_output_weight(self) -> torch.Tensor | None:
        """Return the tied weight (read by Megatron-Core)."""
        return self.language_model.shared_embedding_or_output_weight()

    def set_input_tensor(self, input_tensor: Any) -> None:
        """Take the activations of the stage before."""
        if not isinstance(input_tensor, list):
            input_tensor = [input_tensor]
        if not self.pre_process:
            self.language_model.set_input_tensor(input_tensor)

    def encode_tiles(self, tiles: torch.Tensor) -> torch.Tensor:
        """Turn tiles into language-model vectors.

        Args:
            tiles: uint8[n, 3, H, W].

        Returns:
            float[n, tokens per tile, language width].
        """
        assert self.vision_model is not None
        assert self.vision_projection is not None
        with torch.set_grad_enabled(
            torch.is_grad_enabled() and not self.config.freeze_vision_model
        ):
            features = self.vision_model(tiles)
        return self.vision_projection(features)

    def embed(
        self, tokens: torch.Tensor, position_ids: torch.Tensor, tiles: torch.Tensor | None
    ) -> torch.Tensor:
        """Embed text and images.

        Args:
            tokens: int64[b, s]; image slots hold the image token id.
            position_ids: int64[b, s].
            tiles: uint8[n, 3, H, W] of all samples in order, or None.

        Returns:
            float[s, b, width], or [s / TP, b, width] with sequence parallelism.
        """
        by_sample = self.language_model.embed_words(tokens)  # [b, s, width]
        if tiles is not None and tiles.shape[0] > 0:
            slots = (tokens == self.config.image_token_id).unsqueeze(-1)
            features = self.encode_tiles(tiles).to(by_sample.dtype)
            by_sample = by_sample.masked_scatter(slots, features)
        elif self._has_trainable_vision():
            # Data-parallel ranks reduce the gradients of every trainable parameter in step; a batch
            # without images still has to produce them (zeros).
            by_sample = by_sample + 0.0 * self.encode_tiles(self._blank_tile(tokens)).sum().to(
                by_sample.dtype
            )
        return self.language_model.finish_embedding(by_sample, position_ids)

    def _has_trainable_vision(self) -> bool:
        frozen = self.config.freeze_vision_model and self.config.freeze_vision_projection
        return torch.is_grad_enabled() and not frozen

    def _blank_tile(self, like: torch.Tensor) -> torch.Tensor:
        size = self.config.vision_transformer_config.input_size
        return torch.zeros((1, 3, size, size), dtype=torch.uint8, device=like.device)

    def forward(
        self,
        tokens: torch.Tensor,
        position_ids: torch.Tensor,
        tiles: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        loss_mask: torch.Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Run this stage.

        Args:
            tokens: int64[b, s].
            position_ids: int64[b, s].
            tiles: uint8[n, 3, H, W].
            labels: int64[b, s], already shifted; -100 where there is no loss.
            loss_mask: float[b, s], 1 where there is loss.
            packed_seq_params: sequence boundaries when samples are packed (`thd`).

        Returns:
            The hidden states on an inner stage; on the last one the logits float[b, s, vocabulary]
            without labels, and with labels the losses float[b, s] and the mask.
        """
        decoder_input = self.embed(tokens, position_ids, tiles) if self.pre_process else None
        if labels is not None:
            labels = labels.clamp(min=0)  # ignored positions: any valid id, the mask removes them
        output = self.language_model(
            input_ids=None,
            position_ids=None,
            attention_mask=None,
            decoder_input=decoder_input,
            labels=labels,
            packed_seq_params=packed_seq_params,
            runtime_gather_output=labels is None,
        )
        if not self.post_process:
            return output
        if labels is None:
            return output[..., : self.config.language_transformer_config.vocab_size]
        return output, loss_mask

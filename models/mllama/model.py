"""MLlama on Megatron-Core: vision encoder -> projection -> cross-attention of the text."""

from __future__ import annotations

import copy
from typing import Any

import torch
from megatron.core import tensor_parallel
from megatron.core.enums import ModelType
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel import ColumnParallelLinear
from megatron.core.transformer.module import MegatronModule
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from models.mllama.config import MllamaConfig
from models.mllama.language import MllamaLanguageModel
from models.mllama.visibility import HIDDEN, images_per_row, tile_visibility
from models.mllama.vision import MllamaVisionModel
from models.training_module import TrainingModule

_ALIGNMENT = 16
"""Vision tokens of a rank are a multiple of this: Transformer Engine's FP8 needs it."""


class MCoreMllamaModel(MegatronModule):
    """One pipeline stage's part of the model.

    The vision side lives whole on the first stage. Its tokens travel down the pipeline behind the
    hidden states of the text, in one tensor, so every stage has them for its cross-attention
    layers, and their gradients travel back the same way.

    Args:
        config: sizes, freezing and parallel degrees.
        pre_process: this is the first stage (vision, projection, embedding).
        post_process: this is the last stage (output layer, loss).
        vp_stage: virtual pipeline stage.
    """

    def __init__(
        self,
        config: MllamaConfig,
        pre_process: bool = True,
        post_process: bool = True,
        vp_stage: int | None = None,
    ) -> None:
        super().__init__(config=config)
        language, vision = config.language_transformer_config, config.vision_transformer_config
        self.pre_process = pre_process
        self.post_process = post_process
        self.vp_stage = vp_stage
        self.model_type = ModelType.encoder_or_decoder
        self.share_embeddings_and_output_weights = False
        self.language_model = MllamaLanguageModel(language, pre_process, post_process, vp_stage)
        self.vision_model: MllamaVisionModel | None = None
        self.vision_projection: ColumnParallelLinear | None = None
        if pre_process:
            self.vision_model = MllamaVisionModel(vision)
            self.vision_projection = _build_projection(config)
        self._input: Tensor | None = None
        self._freeze()

    def _freeze(self) -> None:
        for frozen, part in (
            (self.config.freeze_language_model, self.language_model),
            (self.config.freeze_vision_model, self.vision_model),
            (self.config.freeze_vision_projection, self.vision_projection),
        ):
            if frozen and part is not None:
                part.requires_grad_(False)

    def set_input_tensor(self, input_tensor: Any) -> None:
        """Take the activations of the stage before: text, then vision tokens."""
        if isinstance(input_tensor, list):
            (input_tensor,) = input_tensor
        self._input = input_tensor

    def encode_images(
        self, tiles: Tensor, tiles_per_image: Tensor, aspect_ratio_ids: Tensor
    ) -> Tensor:
        """Turn images into vision tokens of the language model's width.

        Args:
            tiles: uint8[t, 3, H, W].
            tiles_per_image: int64[i], in host memory.
            aspect_ratio_ids: int64[i].

        Returns:
            float[i, slots * tokens per tile, width].
        """
        assert self.vision_model is not None
        assert self.vision_projection is not None
        with torch.set_grad_enabled(
            torch.is_grad_enabled() and not self.config.freeze_vision_model
        ):
            features = self.vision_model(tiles, tiles_per_image, aspect_ratio_ids)
        projected, _ = self.vision_projection(features.flatten(1, 2))
        return projected

    def forward(
        self,
        tokens: Tensor,
        position_ids: Tensor,
        tiles: Tensor | None = None,
        tiles_per_image: Tensor | None = None,
        aspect_ratio_ids: Tensor | None = None,
        images_per_sample: Tensor | None = None,
        image_spans: Tensor | None = None,
        labels: Tensor | None = None,
        loss_mask: Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Run this stage.

        Args:
            tokens: int64[b, s]; the image token stands where an image is.
            position_ids: int64[b, s].
            tiles: uint8[t, 3, H, W], the filled tiles of all images of all samples in order.
            tiles_per_image: int64[i], in host memory.
            aspect_ratio_ids: int64[i].
            images_per_sample: int64[b], in host memory; int64[n] of n packed sequences.
            image_spans: int64[i, 2], the positions [start, end) that see each image.
            labels: int64[b, s], already shifted; -100 where there is no loss.
            loss_mask: float[b, s], 1 where there is loss.
            packed_seq_params: the sequences, when rows are packed (`thd`, b is 1).

        Returns:
            Text and vision tokens in one tensor on an inner stage; on the last one the logits
            float[b, s, vocabulary] without labels, and with labels the losses float[b, s] and the
            mask.
        """
        cu_seqlens = None if packed_seq_params is None else packed_seq_params.cu_seqlens_q
        has_images = images_per_sample is not None and int(images_per_sample.sum()) > 0
        visibility = self._visibility(
            has_images, tokens, image_spans, tiles_per_image, images_per_sample, cu_seqlens
        )
        hidden: Tensor | None = None
        context: Tensor | None = None
        if self.pre_process:
            hidden = self._embed(tokens, position_ids)
            if has_images:
                images = self.encode_images(tiles, tiles_per_image, aspect_ratio_ids)
                context = self._context(images, images_per_row(images_per_sample, cu_seqlens))
            elif visibility is not None:
                context = self._blank_context(tokens)
        else:
            context = self._receive(tokens.shape[1], visibility is not None)
        if labels is not None:
            labels = labels.clamp(min=0)  # ignored positions: any valid id, the mask removes them
        output = self.language_model(
            input_ids=None,
            position_ids=None,
            attention_mask=None,
            decoder_input=hidden,
            labels=labels,
            packed_seq_params=packed_seq_params,
            runtime_gather_output=labels is None,
            extra_block_kwargs={"context": context, "context_mask": visibility},
        )
        if not self.post_process:
            return output if context is None else torch.cat([output, context])
        if labels is None:
            return output[..., : self.config.language_transformer_config.vocab_size]
        return output, loss_mask

    def _receive(self, text_length: int, has_context: bool) -> Tensor | None:
        """Hand the text of the stage before to the decoder, and return the vision tokens."""
        assert self._input is not None
        received, self._input = self._input, None
        length = text_length // self._sequence_parts()
        self.language_model.set_input_tensor(received[:length])
        return received[length:] if has_context else None

    def _visibility(
        self,
        has_images: bool,
        tokens: Tensor,
        image_spans: Tensor | None,
        tiles_per_image: Tensor | None,
        images_per_sample: Tensor | None,
        cu_seqlens: Tensor | None,
    ) -> Tensor | None:
        """Codes int8[b, s, tiles] for the layers; None: this batch needs no cross-attention."""
        slots = self.config.vision_transformer_config.max_num_tiles
        if has_images:
            assert image_spans is not None
            assert tiles_per_image is not None
            assert images_per_sample is not None
            return tile_visibility(
                image_spans,
                tiles_per_image,
                images_per_sample,
                tokens.shape[1],
                slots,
                cu_seqlens,
            )
        if self.training and torch.is_grad_enabled():
            # Data-parallel ranks reduce the gradients of every trainable parameter in step; a batch
            # without images still has to produce them (zeros), from a blank image nobody sees.
            return torch.full(
                (*tokens.shape, slots), HIDDEN, dtype=torch.int8, device=tokens.device
            )
        return None

    def _blank_context(self, tokens: Tensor) -> Tensor:
        """The vision tokens of a blank image in the first of these rows."""
        size = self.config.vision_transformer_config.image_size
        tile = torch.zeros((1, 3, size, size), dtype=torch.uint8, device=tokens.device)
        one = torch.ones(1, dtype=torch.int64)
        counts = torch.zeros(len(tokens), dtype=torch.int64)
        counts[0] = 1
        return self._context(self.encode_images(tile, one, one.to(tokens.device)), counts)

    def _embed(self, tokens: Tensor, position_ids: Tensor) -> Tensor:
        """int64[b, s] -> float[s, b, width], or [s / TP, b, width]."""
        hidden = self.language_model.embedding(input_ids=tokens, position_ids=position_ids)
        if self.config.sequence_parallel:
            hidden = tensor_parallel.scatter_to_sequence_parallel_region(hidden)
        return hidden

    def _context(self, images: Tensor, counts: Tensor) -> Tensor:
        """Line the images of each row up.

        Args:
            images: float[i, tokens, width].
            counts: int64[b], images of each row, i in all; in host memory.

        Returns:
            float[vision tokens, b, width], or [vision tokens / TP, b, width].
        """
        by_row = pad_sequence(list(images.split(counts.tolist())), batch_first=True)
        context = by_row.flatten(1, 2).transpose(0, 1)
        multiple = _ALIGNMENT * self._sequence_parts()
        context = pad(context, (0, 0, 0, 0, 0, -len(context) % multiple)).contiguous()
        if self.config.sequence_parallel:
            context = tensor_parallel.scatter_to_sequence_parallel_region(context)
        if self.config.recompute_granularity == "full" and torch.is_grad_enabled():
            # Megatron-Core's recomputation hands every tensor that it returns a gradient.
            context.requires_grad_(True)
        return context

    def _sequence_parts(self) -> int:
        return self.config.tensor_model_parallel_size if self.config.sequence_parallel else 1


def _build_projection(config: MllamaConfig) -> ColumnParallelLinear:
    vision = copy.copy(config.vision_transformer_config)
    vision.gradient_accumulation_fusion = False  # needs a kernel outside Transformer Engine
    return ColumnParallelLinear(
        vision.output_size,
        config.language_transformer_config.hidden_size,
        config=vision,
        init_method=vision.init_method,
        bias=True,
        gather_output=True,
    )


class MllamaModel(TrainingModule):
    """NeMo's wrapper around the Megatron-Core model."""

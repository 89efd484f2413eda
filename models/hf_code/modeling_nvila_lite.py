"""NVILA-Lite: a SigLIP vision tower, a space-to-channel projector and a Qwen2 language model."""

from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedModel, Qwen2ForCausalLM, SiglipVisionModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from .configuration_nvila_lite import NVILALiteConfig
from .projector_nvila_lite import NVILALiteProjector


class NVILALiteForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """NVILA-Lite for text generation from text and tiled images.

    Args:
        config: The configuration.

    Raises:
        ValueError: If the image token of the configuration is not in the vocabulary.
    """

    config_class = NVILALiteConfig
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _tied_weights_keys = ["llm.lm_head.weight"]
    _no_split_modules = ["Qwen2DecoderLayer", "SiglipEncoderLayer", "SiglipVisionEmbeddings"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn_2 = True
    _supports_cache_class = True
    _supports_attention_backend = True

    def __init__(self, config: NVILALiteConfig) -> None:
        super().__init__(config)
        if not 0 <= config.image_token_id < config.text_config.vocab_size:
            raise ValueError(
                f"image_token_id={config.image_token_id} is not in the vocabulary: allowed are the "
                f"ids 0 to {config.text_config.vocab_size - 1}"
            )
        self.vision_tower = SiglipVisionModel(config.vision_config)
        self.mm_projector = NVILALiteProjector(
            config.vision_config.hidden_size, config.text_config.hidden_size, config.downsample
        )
        self.llm = Qwen2ForCausalLM(config.text_config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        # Only the projector comes here; the two other parts initialise themselves.
        if isinstance(module, (nn.Linear, nn.LayerNorm)):
            module.reset_parameters()

    def get_input_embeddings(self) -> nn.Module:
        """Returns the token embedding of the language model."""
        return self.llm.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the token embedding of the language model."""
        self.llm.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """Returns the output layer of the language model."""
        return self.llm.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replaces the output layer of the language model."""
        self.llm.set_output_embeddings(new_embeddings)

    def get_decoder(self) -> nn.Module:
        """Returns the language model without its output layer."""
        return self.llm.get_decoder()

    def get_vision_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Runs the vision tower up to the layer that the projector reads.

        Args:
            pixel_values: Normalised tiles [tiles, 3, side, side].

        Returns:
            ``hidden_states[vision_feature_layer]`` [tiles, patches, width]; later blocks are not
            computed.
        """
        vision_model = self.vision_tower.vision_model
        hidden_states = vision_model.embeddings(pixel_values.to(self.vision_tower.dtype))
        for block in vision_model.encoder.layers[: self.config.vision_layers_used]:
            output = block(hidden_states, attention_mask=None)
            hidden_states = output[0] if isinstance(output, tuple) else output
        return hidden_states

    def get_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Maps tiles [tiles, 3, side, side] to [tiles, tokens_per_tile, text width]."""
        return self.mm_projector(self.get_vision_features(pixel_values))

    def _embed(self, input_ids: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
        """Embeds the ids and puts the image features, in order, at the image positions."""
        embeddings = self.get_input_embeddings()(input_ids)
        is_image = input_ids == self.config.image_token_id
        features = self.get_image_features(pixel_values).flatten(0, 1)
        positions = int(is_image.sum())
        if positions != len(features):
            raise ValueError(
                f"input_ids has {positions} image positions for {len(features)} image features: "
                f"every tile needs {self.config.tokens_per_tile} positions"
            )
        return embeddings.masked_scatter(is_image[..., None], features.to(embeddings.dtype))

    def _refuse_placeholders(self, input_ids: torch.Tensor) -> None:
        positions = int((input_ids == self.config.image_token_id).sum())
        if positions:
            raise ValueError(
                f"input_ids has {positions} image positions without pixel_values: "
                f"every {self.config.tokens_per_tile} of them need a tile"
            )

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        cache_position: torch.LongTensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Computes the logits, and the loss when labels are given.

        Args:
            input_ids: Ids [batch, length]; every tile has ``tokens_per_tile`` image ids.
            pixel_values: Normalised tiles [tiles, 3, side, side] of the whole batch, in order.
            attention_mask: 1 where there is a token, 0 where there is padding [batch, length].
            position_ids: Positions [batch, length].
            past_key_values: Cache of earlier positions.
            inputs_embeds: Embeddings instead of ``input_ids`` and ``pixel_values``.
            labels: Ids as in ``input_ids`` (they are shifted here), -100 where there is no target.
            use_cache: Whether to return the cache.
            cache_position: Positions in the cache [length].
            logits_to_keep: Number of last positions to compute logits for; 0 means all.
            **kwargs: Passed to the language model.

        Returns:
            The output of the language model: logits [batch, length, vocabulary].

        Raises:
            ValueError: If the tiles do not match the image positions, or tiles come with
                ``inputs_embeds`` or without ``input_ids``.
        """
        if pixel_values is not None:
            if input_ids is None or inputs_embeds is not None:
                raise ValueError("pixel_values must come with input_ids and without inputs_embeds")
            inputs_embeds = self._embed(input_ids, pixel_values)
            input_ids = None
        elif input_ids is not None and not _has_content(past_key_values):
            self._refuse_placeholders(input_ids)
        return self.llm(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            labels=labels,
            use_cache=use_cache,
            cache_position=cache_position,
            logits_to_keep=logits_to_keep,
            **kwargs,
        )

    def prepare_inputs_for_generation(
        self, *args: Any, pixel_values: torch.Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Prepares one generation step; only the first one sees the tiles."""
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)
        cache_position = inputs.get("cache_position")
        is_first = cache_position is None or int(cache_position[0]) == 0
        inputs["pixel_values"] = pixel_values if is_first else None
        return inputs


def _has_content(past_key_values: Any) -> bool:
    return past_key_values is not None and past_key_values.get_seq_length() > 0

"""The language model: Megatron-Core's GPT with two kinds of layer."""

from __future__ import annotations

from megatron.core.extensions.transformer_engine import TENorm
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_with_transformer_engine_spec
from megatron.core.transformer.transformer_block import (
    TransformerBlockSubmodules,
    get_num_layers_to_build,
)
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset
from nemo.collections.llm.gpt.model.llama import apply_rope_scaling
from torch import Tensor

from models.mllama.config import MllamaLanguageConfig
from models.mllama.cross_attention import cross_attention_layer_spec
from models.vocabulary import hide_padding


def decoder_spec(config: MllamaLanguageConfig, vp_stage: int | None) -> TransformerBlockSubmodules:
    """Layers of this pipeline stage, in Hugging Face's order."""
    own = get_gpt_layer_with_transformer_engine_spec(qk_layernorm=False)
    cross = cross_attention_layer_spec()
    first = get_transformer_layer_offset(config, vp_stage)
    return TransformerBlockSubmodules(
        layer_specs=[
            cross if first + index in config.cross_attention_layers else own
            for index in range(get_num_layers_to_build(config, vp_stage))
        ],
        layer_norm=TENorm,
    )


class MllamaLanguageModel(GPTModel):
    """GPTModel with cross-attention layers, whose softmax runs over the real vocabulary."""

    def __init__(
        self,
        config: MllamaLanguageConfig,
        pre_process: bool,
        post_process: bool,
        vp_stage: int | None = None,
    ) -> None:
        super().__init__(
            config,
            transformer_layer_spec=decoder_spec(config, vp_stage),
            vocab_size=config.padded_vocab_size(),
            max_sequence_length=config.seq_length,
            pre_process=pre_process,
            post_process=post_process,
            fp16_lm_cross_entropy=config.fp16_lm_cross_entropy,
            parallel_output=config.parallel_output,
            share_embeddings_and_output_weights=False,
            position_embedding_type=config.position_embedding_type,
            rotary_percent=config.rotary_percent,
            rotary_base=config.rotary_base,
            scatter_embedding_sequence_parallel=config.scatter_embedding_sequence_parallel,
            vp_stage=vp_stage,
        )
        if config.rope_scaling:
            self.rotary_pos_emb.inv_freq = apply_rope_scaling(
                self.rotary_pos_emb.inv_freq,
                factor=config.scale_factor,
                low_freq_factor=config.low_freq_factor,
                high_freq_factor=config.high_freq_factor,
                old_context_len=config.old_context_len,
            )

    def compute_language_model_loss(self, labels: Tensor, logits: Tensor) -> Tensor:
        """Cross entropy per token over the real vocabulary.

        Args:
            labels: int64[b, s], every value in [0, vocabulary).
            logits: float[s, b, padded vocabulary / TP]; its padding columns are overwritten.

        Returns:
            float[b, s].
        """
        hide_padding(logits, self.config.vocab_size)
        return super().compute_language_model_loss(labels, logits)

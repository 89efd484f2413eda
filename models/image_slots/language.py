"""The language model: Megatron-Core's GPT with the padding of its vocabulary out of the loss."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core import tensor_parallel
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_with_transformer_engine_spec
from nemo.collections.llm.gpt.model.llama import apply_rope_scaling

from models.vocabulary import hide_padding


class LanguageModel(GPTModel):
    """GPTModel whose softmax runs over the real vocabulary.

    The embedding table is padded: the configuration is one of NeMo's with a PaddedVocabulary.

    Raises:
        ValueError: sequences are longer than the table of positions.
    """

    def __init__(
        self,
        config: Any,
        pre_process: bool,
        post_process: bool,
        vp_stage: int | None = None,
    ) -> None:
        if config.max_positions is not None and config.seq_length > config.max_positions:
            raise ValueError(
                f"seq_length: {config.seq_length} is more than the {config.max_positions} "
                "positions that the language model has learnt."
            )
        super().__init__(
            config,
            transformer_layer_spec=get_gpt_layer_with_transformer_engine_spec(
                qk_layernorm=config.qk_layernorm
            ),
            vocab_size=config.padded_vocab_size(),
            max_sequence_length=config.max_positions or config.seq_length,
            pre_process=pre_process,
            post_process=post_process,
            fp16_lm_cross_entropy=config.fp16_lm_cross_entropy,
            parallel_output=config.parallel_output,
            share_embeddings_and_output_weights=bool(config.share_embeddings_and_output_weights),
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

    def embed_words(self, tokens: torch.Tensor) -> torch.Tensor:
        """Look tokens up: int64[b, s] -> float[b, s, width], without their positions."""
        return self.embedding.word_embeddings(tokens)

    def finish_embedding(
        self, embeddings: torch.Tensor, position_ids: torch.Tensor
    ) -> torch.Tensor:
        """Do with the vectors of words and images what GPTModel's embedding does with words.

        Args:
            embeddings: float[b, s, width].
            position_ids: int64[b, s].

        Returns:
            float[s, b, width], or [s / TP, b, width] with sequence parallelism.
        """
        embedding = self.embedding
        if embedding.add_position_embedding:
            embeddings = embeddings + embedding.position_embeddings(position_ids)
        embeddings = embeddings.transpose(0, 1).contiguous()
        if not self.config.sequence_parallel:
            return embedding.embedding_dropout(embeddings)
        embeddings = tensor_parallel.scatter_to_sequence_parallel_region(embeddings)
        with tensor_parallel.get_cuda_rng_tracker().fork():
            return embedding.embedding_dropout(embeddings)

    def compute_language_model_loss(
        self, labels: torch.Tensor, logits: torch.Tensor
    ) -> torch.Tensor:
        """Cross entropy per token over the real vocabulary.

        Args:
            labels: int64[b, s], every value in [0, vocabulary).
            logits: float[s, b, padded vocabulary / TP]; its padding columns are overwritten.

        Returns:
            float[b, s].
        """
        hide_padding(logits, self.config.vocab_size)
        return super().compute_language_model_loss(labels, logits)

"""What the configurations of these models share."""

from __future__ import annotations

from models.padding import padded_size


class PaddedVocabulary:
    """Part of a language model's configuration: a vocabulary of any size.

    It is no dataclass: the fields are those of the NeMo configuration beside it.
    """

    max_positions: int | None = None
    """Rows of a table of learned positions, where the model has one."""

    rope_scaling: bool = False
    """Whether rotary frequencies are scaled as in Llama 3.1."""

    scale_factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    old_context_len: int = 8192
    vocab_size: int | None
    make_vocab_size_divisible_by: int
    tensor_model_parallel_size: int

    def padded_vocab_size(self) -> int:
        """Rows of the embedding table; the padding rows take no part in the loss."""
        assert self.vocab_size is not None
        return padded_size(
            self.vocab_size, self.make_vocab_size_divisible_by, self.tensor_model_parallel_size
        )

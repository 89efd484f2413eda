"""From encoded samples to the tensors of one micro-batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from datamodules.conversation import IGNORED


class Encoded(Protocol):
    """What the encoded samples of all families have."""

    @property
    def key(self) -> str:
        """The sample's key."""
        ...

    @property
    def tokens(self) -> np.ndarray:
        """Token ids int64 [length]."""
        ...

    @property
    def labels(self) -> np.ndarray:
        """int64 [length], already shifted; -100 where nothing is learnt."""
        ...


def joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Joins arrays along their first axis; one alone, which may have megabytes, is not copied."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRows:
    """Joins samples to rows, one in each and padded on the right, or several in each.

    Attention is causal, so padding needs no mask.

    Attributes:
        pad_token_id: Fills the end of shorter rows.
        pad_to_multiple_of: The row length is rounded up to this.
        fixed_length: The row length if given, which must be a multiple of `pad_to_multiple_of`.
    """

    pad_token_id: int
    pad_to_multiple_of: int = 8
    fixed_length: int | None = None

    def join(self, samples: Sequence[Encoded]) -> dict[str, Any]:
        """Joins the text of b samples to rows of s positions.

        Returns:
            tokens int64 [b, s]; position_ids int64 [b, s]; labels int64 [b, s], already shifted
            (labels[t] is the token wanted after position t, -100 for none); loss_mask float32
            [b, s]; sample_keys list[str]; num_tokens int, without the padding.
        """
        assert samples, "a micro-batch without samples"
        length = self._row_length(max(len(sample.tokens) for sample in samples))
        tokens = np.full((len(samples), length), self.pad_token_id, dtype=np.int64)
        labels = np.full((len(samples), length), IGNORED, dtype=np.int64)
        for row, sample in enumerate(samples):
            tokens[row, : len(sample.tokens)] = sample.tokens
            labels[row, : len(sample.labels)] = sample.labels
        positions = torch.arange(length, dtype=torch.int64).repeat(len(samples), 1)
        label_tensor = torch.from_numpy(labels)
        return {
            "tokens": torch.from_numpy(tokens),
            "position_ids": positions,
            "labels": label_tensor,
            "loss_mask": (label_tensor != IGNORED).to(torch.float32),
            "sample_keys": [sample.key for sample in samples],
            "num_tokens": sum(len(sample.tokens) for sample in samples),
        }

    def pack(self, rows: Sequence[Sequence[Encoded]]) -> tuple[dict[str, Any], list[int]]:
        """Puts the samples of b rows one after the other (`thd`), without attention between them.

        The rest of a row is a sequence of its own, in which nothing is learnt.

        Returns:
            A micro-batch, with t positions in all: tokens int64 [1, t]; position_ids int64 [1, t],
            from 0 in every sequence, and 0 in the rest of a row; labels int64 [1, t]; loss_mask
            float32 [1, t]; cu_seqlens int32 [n + 1], where each of n sequences begins, and t;
            max_seqlen, the length of the longest; sample_keys list[str]; num_tokens int, without
            the padding. And which sequence each sample is.
        """
        assert all(rows), "a row without samples"
        used = [sum(len(sample.tokens) for sample in row) for row in rows]
        length = self._row_length(max(used))
        tokens = np.full(length * len(rows), self.pad_token_id, dtype=np.int64)
        labels = np.full(length * len(rows), IGNORED, dtype=np.int64)
        starts: list[int] = []
        sequences: list[int] = []
        rests: list[int] = []
        for number, row in enumerate(rows):
            end = number * length
            for sample in row:
                sequences.append(len(starts))
                starts.append(end)
                end += len(sample.tokens)
                tokens[starts[-1] : end] = sample.tokens
                labels[starts[-1] : end] = sample.labels
            if end < (number + 1) * length:
                rests.append(len(starts))
                starts.append(end)
        cu_seqlens = np.array([*starts, len(tokens)], dtype=np.int32)
        lengths = np.diff(cu_seqlens)
        positions = np.arange(len(tokens), dtype=np.int64) - np.repeat(cu_seqlens[:-1], lengths)
        for rest in rests:  # which may be longer than a table of learned positions
            positions[cu_seqlens[rest] : cu_seqlens[rest + 1]] = 0
        label_row = torch.from_numpy(labels)[None]
        batch = {
            "tokens": torch.from_numpy(tokens)[None],
            "position_ids": torch.from_numpy(positions)[None],
            "labels": label_row,
            "loss_mask": (label_row != IGNORED).to(torch.float32),
            "cu_seqlens": torch.from_numpy(cu_seqlens),
            "max_seqlen": int(lengths.max()),
            "sample_keys": [sample.key for row in rows for sample in row],
            "num_tokens": sum(used),
        }
        return batch, sequences

    def _row_length(self, longest: int) -> int:
        if self.fixed_length is not None:
            assert longest <= self.fixed_length, f"{longest} tokens in rows of {self.fixed_length}"
            return self.fixed_length
        return -(-longest // self.pad_to_multiple_of) * self.pad_to_multiple_of

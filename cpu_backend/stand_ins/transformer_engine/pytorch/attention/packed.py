"""Attention over packed sequences (`thd`): each sequence by itself, equal neighbours together."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, cat

# (queries, keys, values, all [b, h, s, d]) -> [b, h, s, d]
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class Run(NamedTuple):
    """Neighbouring sequences of one length, stored without gaps."""

    sequences: int
    query_start: int
    query_length: int
    key_start: int
    key_length: int


def _lengths(boundaries: list[int]) -> list[int]:
    return [end - start for start, end in zip(boundaries, boundaries[1:], strict=False)]


def runs_of_equal_length(
    cu_q: list[int], cu_kv: list[int], stored_q: list[int], stored_kv: list[int]
) -> list[Run]:
    """Returns the sequences in order, neighbours of equal length merged.

    Args:
        cu_q: Cumulative lengths of the queries' sequences, from 0.
        cu_kv: The same for the keys.
        stored_q: Where the sequences are stored; differs from `cu_q` where each is padded.
        stored_kv: The same for the keys.
    """
    if len(cu_q) != len(cu_kv):
        raise ValueError(
            f"cu_seqlens_q names {len(cu_q) - 1} sequences and cu_seqlens_kv {len(cu_kv) - 1}; "
            "they must name as many."
        )
    runs: list[Run] = []
    for index, (query_length, key_length) in enumerate(
        zip(_lengths(cu_q), _lengths(cu_kv), strict=True)
    ):
        new = Run(1, stored_q[index], query_length, stored_kv[index], key_length)
        last = runs[-1] if runs else None
        if (
            last is not None
            and (last.query_length, last.key_length) == (query_length, key_length)
            and last.query_start + last.sequences * query_length == new.query_start
            and last.key_start + last.sequences * key_length == new.key_start
        ):
            runs[-1] = last._replace(sequences=last.sequences + 1)
        else:
            runs.append(new)
    return [run for run in runs if run.query_length > 0]


def _batch(packed: Tensor, start: int, count: int, length: int) -> Tensor:
    """Returns `[count, heads, length, d]`, a view of `[tokens, heads, d]`."""
    part = packed[start : start + count * length]
    return part.unflatten(0, (count, length)).transpose(1, 2)


def attend_packed(
    query: Tensor, key: Tensor, value: Tensor, runs: list[Run], attend: Attend
) -> Tensor:
    """Returns `[tokens, heads, d]`; tokens of no sequence get zeros.

    Cost and memory are the sum of the squares of the lengths, not the square of their sum.
    """
    outputs: list[Tensor] = []
    end = 0
    for run in runs:
        if run.query_start > end:
            outputs.append(_nothing(query, value, run.query_start - end))
        queries = _batch(query, run.query_start, run.sequences, run.query_length)
        keys = _batch(key, run.key_start, run.sequences, run.key_length)
        values = _batch(value, run.key_start, run.sequences, run.key_length)
        outputs.append(attend(queries, keys, values).transpose(1, 2).flatten(0, 1))
        end = run.query_start + run.sequences * run.query_length
    if query.shape[0] > end or not outputs:
        outputs.append(_nothing(query, value, query.shape[0] - end))
    return outputs[0] if len(outputs) == 1 else cat(outputs)


def _nothing(query: Tensor, value: Tensor, tokens: int) -> Tensor:
    return query.new_zeros(tokens, query.shape[1], value.shape[2])

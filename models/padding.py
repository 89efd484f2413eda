"""Vocabularies of any size, padded for tensor parallelism. Importing this is free."""

from __future__ import annotations

VOCABULARY_MULTIPLE = 128
"""The padded size of a vocabulary is a multiple of this."""


def padded_size(rows: int, multiple: int = VOCABULARY_MULTIPLE, tensor_parallel: int = 1) -> int:
    """Rows of a vocabulary table, padded to one size for every usual TP degree.

    A multiple of 128 divides by every TP that fits a node, so a checkpoint keeps its shape when the
    degree changes.

    Args:
        rows: real rows.
        multiple: the padded size is a multiple of this.
        tensor_parallel: ... and of this.
    """
    if multiple % tensor_parallel:
        multiple *= tensor_parallel
    return -(-rows // multiple) * multiple

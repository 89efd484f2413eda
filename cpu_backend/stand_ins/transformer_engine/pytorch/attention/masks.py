"""Which keys a query does not see: the mask kinds of Transformer Engine as one boolean tensor."""

from typing import TypeAlias

import torch
from torch import Tensor

Mask: TypeAlias = Tensor | tuple[Tensor, Tensor] | None
Window = tuple[int, int]

MASK_TYPES = (
    "no_mask",
    "padding",
    "causal",
    "padding_causal",
    "causal_bottom_right",
    "padding_causal_bottom_right",
    "arbitrary",
)


def normalised_mask_type(mask_type: str) -> str:
    """Returns the mask type in the order of `MASK_TYPES`; 'causal,padding' and such are legacy."""
    if "," in mask_type:
        mask_type = "padding_causal"
    if mask_type not in MASK_TYPES:
        raise ValueError(f"attn_mask_type={mask_type!r} is not one of {', '.join(MASK_TYPES)}.")
    return mask_type


def is_plain_causal(mask_type: str, window: Window) -> bool:
    """Returns whether the mask, apart from padding, is the lower triangle from the top left."""
    return mask_type in ("causal", "padding_causal") and window[0] < 0


def _outside_window(mask_type: str, window: Window, queries: int, keys: int) -> Tensor | None:
    """Returns `[sq, skv]`, True where the distance from query to key is not allowed."""
    left, right = window
    if "causal" in mask_type:
        right = 0
    if left < 0 and right < 0:
        return None
    # 'causal' counts from the first key, everything else from the last one; with as many keys as
    # queries that is the same.
    offset = 0 if mask_type in ("causal", "padding_causal") else keys - queries
    distance = torch.arange(keys) - torch.arange(queries).unsqueeze(1) - offset
    outside = torch.zeros(queries, keys, dtype=torch.bool)
    if right >= 0:
        outside |= distance > right
    if left >= 0:
        outside |= distance < -left
    return outside


def _padding(mask: Mask) -> Tensor:
    """Returns the padding mask as `[b, 1, sq, skv]` or what it already is."""
    if isinstance(mask, tuple):
        queries, keys = mask
    elif mask is not None and mask.dim() == 4 and mask.shape[-2] == 1:
        queries = keys = mask
    elif mask is not None:
        return mask
    else:
        raise ValueError("attn_mask_type='padding' needs an attention_mask or packed sequences.")
    # A padded query sees nothing, and so its output is zero.
    return torch.logical_or(queries.transpose(-1, -2), keys)


def hidden_keys(
    mask_type: str, window: Window, mask: Mask, queries: int, keys: int
) -> Tensor | None:
    """Returns what `[.., .., sq, skv]` is hidden, True where it is, or None where nothing is.

    Args:
        mask_type: One of `MASK_TYPES`.
        window: Keys to the left and right of a query that it sees; -1 for all.
        mask: For the padding kinds `[b, 1, 1, s]`, True where padded, or a pair of them for queries
            and keys; for "arbitrary" a tensor broadcastable to `[b, heads, sq, skv]`, True where
            hidden. The other kinds ignore it.
        queries: Length of the queries.
        keys: Length of the keys.
    """
    hidden = _outside_window(mask_type, window, queries, keys)
    if mask_type == "arbitrary":
        if not isinstance(mask, Tensor):
            raise ValueError("attn_mask_type='arbitrary' needs one attention_mask tensor.")
        given: Tensor | None = mask.bool()
    elif "padding" in mask_type:
        given = _padding(mask).bool()
    else:
        given = None
    if given is None:
        return hidden
    return given if hidden is None else torch.logical_or(given, hidden)

"""`te.pytorch.attention`: dot product attention, rotary embeddings and the split of QKV."""

from .dot_product_attention import DotProductAttention
from .rope import apply_rotary_pos_emb
from .split import _SplitAlongDim

__all__ = ["DotProductAttention", "_SplitAlongDim", "apply_rotary_pos_emb"]

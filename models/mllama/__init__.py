"""MLlama: a tiled vision transformer, and Llama with gated cross-attention layers."""

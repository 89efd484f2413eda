"""LLaVA: a CLIP vision tower, an MLP projector and a Llama language model."""

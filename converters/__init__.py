"""Hugging Face directories to NeMo checkpoints and back."""

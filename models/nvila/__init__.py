"""NVILA: SigLIP tiles, a space-to-channel projector and Qwen2.5."""

"""The logits of both sides of a conversion."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from converters.checkpoint import load_model, single_process
from converters.family import Family


def compare_logits(family: Family, hf: Path, ckpt: str | Path) -> dict[str, float]:
    """Run both models, in fp32, on each kind of prompt.

    Args:
        family: of both.
        hf: Hugging Face directory.
        ckpt: NeMo checkpoint.

    Returns:
        Largest absolute difference of the logits by kind of prompt.
    """
    code = {"trust_remote_code": family.runs_directory_code}
    processor = AutoProcessor.from_pretrained(hf, **code)
    reference = AutoModelForImageTextToText.from_pretrained(
        hf, torch_dtype=torch.float32, **code
    ).eval()
    differences = {}
    with single_process():
        _, module = load_model(ckpt, torch.float32)
        module.eval()
        for kind, prompt in family.prompts(processor, reference.config).items():
            images = list(prompt.images) or None
            inputs = processor(text=prompt.text, images=images, return_tensors="pt")
            with torch.no_grad():
                wanted = reference(**inputs).logits
                found = module(**family.model_inputs(processor, inputs))
            differences[kind] = (wanted - found).abs().max().item()
    return differences

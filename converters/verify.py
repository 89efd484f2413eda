"""Proof that a checkpoint and a Hugging Face directory are the same model."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor, BatchFeature

from converters.checkpoint import load_model, model_tensors, single_process
from converters.import_hf import check_family, read_nvila_weights
from converters.mapping import to_hf
from converters.nvila import nvila_table
from models.nvila.config import read_assets_config
from models.nvila.model import MCoreNvilaModel
from models.nvila.remote_code import require_known_code

LOGIT_TOLERANCE = 1e-4
"""Largest allowed difference of any logit, both models in fp32."""


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What was compared and what came out."""

    tensors: int
    different_tensors: tuple[str, ...]
    logit_differences: dict[str, float]
    """Largest absolute difference by kind of prompt."""

    @property
    def passed(self) -> bool:
        """No tensor differs and every logit is within the tolerance."""
        return not self.different_tensors and all(
            difference <= LOGIT_TOLERANCE for difference in self.logit_differences.values()
        )

    def to_dict(self) -> dict[str, object]:
        """Plain values for a report."""
        return asdict(self) | {"passed": self.passed}


def verify_nvila(
    hf: str | Path, ckpt: str | Path, logits: bool = True, trust_remote_code: bool = False
) -> Verification:
    """Compare keys, bits and logits.

    Args:
        hf: Hugging Face directory.
        ckpt: NeMo checkpoint.
        logits: also run both models (in fp32, so they must fit into memory).
        trust_remote_code: run modelling code of the directory that is not this project's.

    Raises:
        ValueError: an input is not what it should be, or a key is missing or surplus.
    """
    check_family(hf)
    if logits and not trust_remote_code:
        require_known_code(Path(hf))
    description = read_assets_config(hf)
    expected = read_nvila_weights(hf, description)
    with single_process():
        config, module = load_model(ckpt)
        found = to_hf(nvila_table(config), model_tensors(module))
        if expected.keys() != found.keys():
            missing = sorted(expected.keys() ^ found.keys())
            raise ValueError(f"hf: {hf} and {ckpt} differ in the tensors {', '.join(missing)}.")
        count = len(expected)
        different = tuple(name for name in expected if not bits_equal(expected[name], found[name]))
        differences: dict[str, float] = {}
        if logits:
            del found, module, expected
            config, module = load_model(ckpt, torch.float32)
            differences = compare_logits(hf, module)
    return Verification(tensors=count, different_tensors=different, logit_differences=differences)


def bits_equal(left: Tensor, right: Tensor) -> bool:
    """Return whether dtype, shape and every bit agree (NaN equals the same NaN)."""
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    return torch.equal(
        left.contiguous().view(-1).view(torch.uint8), right.contiguous().view(-1).view(torch.uint8)
    )


def compare_logits(hf: str | Path, module: MCoreNvilaModel) -> dict[str, float]:
    """Run both models on each kind of prompt.

    Args:
        hf: Hugging Face directory.
        module: the Megatron-Core model in fp32, on this process alone.

    Returns:
        Largest absolute difference of the logits by kind of prompt.
    """
    processor = AutoProcessor.from_pretrained(hf, trust_remote_code=True)
    reference = AutoModelForImageTextToText.from_pretrained(
        hf, trust_remote_code=True, torch_dtype=torch.float32
    ).eval()
    module.eval()
    differences = {}
    for kind, (text, images) in _prompts(reference.config.tile_size).items():
        inputs = processor(text=text, images=images or None, return_tensors="pt")
        with torch.no_grad():
            wanted = reference(**inputs).logits
            found = module(
                tokens=inputs["input_ids"],
                position_ids=torch.arange(inputs["input_ids"].shape[1]).unsqueeze(0),
                tiles=_as_uint8(inputs),
            )
        differences[kind] = (wanted - found).abs().max().item()
    return differences


def _as_uint8(inputs: BatchFeature) -> Tensor | None:
    pixels = inputs.get("pixel_values")
    if pixels is None:
        return None
    return ((pixels * 0.5 + 0.5) * 255.0).round().to(torch.uint8)


def _prompts(tile_size: int) -> dict[str, tuple[str, list[Image.Image]]]:
    """Text and images of each kind; the images are seeded noise with a gradient."""
    random = np.random.default_rng(0)

    def image(columns: int, rows: int) -> Image.Image:
        height, width = tile_size * rows, tile_size * columns
        ramp = np.linspace(0, 200, width)[None, :, None]
        noise = random.integers(0, 56, (height, width, 3))
        return Image.fromarray((ramp + noise).astype(np.uint8))

    return {
        "one_tile": ("<image>\n何が見えますか?", [image(1, 1)]),
        "many_tiles": ("<image>\n左から順に読んでください。", [image(3, 1)]),
        "many_images": ("<image>\nこれと<image>\nこれは同じですか?", [image(2, 1), image(1, 2)]),
        "text_only": ("日本で一番高い山は何ですか?", []),
    }

"""Proof that a checkpoint and a Hugging Face directory are the same model.

Keys and bits are compared a few rows at a time; only the comparison of logits builds models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path

import psutil

from converters.families import check_family, family_named, read_config
from converters.family import Family
from converters.finished import open_checkpoint
from converters.hf_weights import HfWeights
from converters.hub import open_source
from converters.lazy import LazyTensor, same_bits
from converters.manifest import damaged_files
from converters.mapping import to_hf
from converters.nemo_weights import open_weights

LOGIT_TOLERANCE = 1e-4
"""Largest allowed difference of any logit, both models in fp32."""


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What was compared and what came out."""

    tensors: int
    different_tensors: tuple[str, ...]
    damaged_files: tuple[str, ...]
    """Files that are not what the manifests say."""

    logit_differences: dict[str, float]
    """Largest absolute difference by kind of prompt."""

    layer_differences: dict[str, dict[str, float]]
    """Largest difference by kind of prompt and layer, as a part of the largest activation there;
    only where models were computed layer by layer."""

    @property
    def passed(self) -> bool:
        """No tensor differs, no file has changed, and every logit is within the tolerance."""
        measured = [*self.logit_differences.values()]
        for layers in self.layer_differences.values():
            measured += layers.values()
        return not (self.different_tensors or self.damaged_files) and all(
            difference <= LOGIT_TOLERANCE for difference in measured
        )

    def to_dict(self) -> dict[str, object]:
        """Plain values for a report."""
        return asdict(self) | {"passed": self.passed}


def verify_checkpoint(
    hf: str | Path,
    ckpt: str | Path,
    logits: bool = True,
    trust_remote_code: bool = False,
    layers: bool | None = None,
) -> Verification:
    """Compare keys, bits and logits.

    Args:
        hf: Hugging Face directory or name on the hub.
        ckpt: NeMo checkpoint; its assets name the family.
        logits: also run both models, in fp32.
        trust_remote_code: run modelling code of the directory that is not this project's.
        layers: run them with the weights of one module in memory at a time, and compare every layer
            of the language model; None does so where they would not fit into memory.

    Raises:
        ValueError: an input is not what it should be, or a key is missing or surplus.
    """
    family, assets = open_checkpoint(ckpt)
    source = open_source(hf)
    own = _layout_of(family, source.small_files(), hf, logits)
    if logits and not trust_remote_code:
        family.check_code(source.small_files())
    directory = source.all_files()
    damaged = [*(damaged_files(directory) or ()), *(damaged_files(Path(ckpt)) or ())]
    hf_weights = HfWeights(directory)
    expected = own.known_tensors(directory, hf_weights)
    table = family.table(assets)
    weights = open_weights(ckpt, [row.megatron_key for row in table])
    found = to_hf(table, weights.tensors)
    if expected.keys() != found.keys():
        missing = sorted(expected.keys() ^ found.keys())
        raise ValueError(f"hf: {hf} and {ckpt} differ in the tensors {', '.join(missing)}.")

    def release() -> None:
        hf_weights.release()
        weights.release()

    different = [
        name for name, tensor in expected.items() if not same_bits(tensor, found[name], release)
    ]
    differences: dict[str, float] = {}
    layer_differences: dict[str, dict[str, float]] = {}
    if logits and (layers or (layers is None and not _fit_into_memory(expected))):
        from converters.layered import LOGITS, compare_layers  # needs NeMo

        layer_differences = compare_layers(family, directory, ckpt)
        differences = {kind: found.pop(LOGITS) for kind, found in layer_differences.items()}
    elif logits:
        from converters.logits import compare_logits  # needs NeMo

        differences = compare_logits(family, directory, ckpt)
    return Verification(
        tensors=len(expected),
        different_tensors=tuple(different),
        damaged_files=tuple(damaged),
        logit_differences=differences,
        layer_differences=layer_differences,
    )


def _layout_of(family: Family, directory: Path, hf: str | Path, logits: bool) -> Family:
    """Return the family that reads a directory: the checkpoint's, or one that becomes it.

    Raises:
        ValueError: it is another one, or its logits are wanted and transformers cannot give them.
    """
    found = read_config(directory, "hf").get("model_type")
    for name in family.read_as:
        other = family_named(name)
        if other.model_type == found:
            if logits:
                raise ValueError(
                    f"hf: {hf} is in the layout of {name}, which transformers cannot compute; "
                    "leave the logits out (--no-logits), or compare the export of layout hf."
                )
            return other
    check_family(directory, hf, family)
    return family


def _fit_into_memory(tensors: Mapping[str, LazyTensor]) -> bool:
    """Tell whether both models fit, in fp32, beside what a checkpoint takes while it is loaded."""
    needed = 3 * 4 * sum(prod(tensor.shape) for tensor in tensors.values())
    return needed < psutil.virtual_memory().available

"""Proof that a checkpoint and a Hugging Face directory are the same model.

Keys and bits are compared a few rows at a time; only the comparison of logits builds models.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from converters.families import check_family
from converters.finished import open_checkpoint
from converters.hf_weights import HfWeights
from converters.hub import open_source
from converters.lazy import same_bits
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

    @property
    def passed(self) -> bool:
        """No tensor differs, no file has changed, and every logit is within the tolerance."""
        return not (self.different_tensors or self.damaged_files) and all(
            difference <= LOGIT_TOLERANCE for difference in self.logit_differences.values()
        )

    def to_dict(self) -> dict[str, object]:
        """Plain values for a report."""
        return asdict(self) | {"passed": self.passed}


def verify_checkpoint(
    hf: str | Path, ckpt: str | Path, logits: bool = True, trust_remote_code: bool = False
) -> Verification:
    """Compare keys, bits and logits.

    Args:
        hf: Hugging Face directory or name on the hub.
        ckpt: NeMo checkpoint; its assets name the family.
        logits: also run both models (in fp32, so they must fit into memory).
        trust_remote_code: run modelling code of the directory that is not this project's.

    Raises:
        ValueError: an input is not what it should be, or a key is missing or surplus.
    """
    family, assets = open_checkpoint(ckpt)
    source = open_source(hf)
    check_family(source.small_files(), hf, family)
    if logits and not trust_remote_code:
        family.check_code(source.small_files())
    directory = source.all_files()
    damaged = [*(damaged_files(directory) or ()), *(damaged_files(Path(ckpt)) or ())]
    hf_weights = HfWeights(directory)
    expected = family.table_names(directory, hf_weights.tensors)
    table = family.table(assets)
    weights = open_weights(ckpt, [row.megatron_key for row in table])
    found = to_hf(table, weights.tensors)
    if expected.keys() != found.keys():
        missing = sorted(expected.keys() ^ found.keys())
        raise ValueError(f"hf: {hf} and {ckpt} differ in the tensors {', '.join(missing)}.")
    different = []
    for name, tensor in expected.items():
        if not same_bits(tensor, found[name]):
            different.append(name)
        hf_weights.release()
        weights.release()
    differences: dict[str, float] = {}
    if logits:
        from converters.logits import compare_logits  # needs NeMo

        differences = compare_logits(family, directory, ckpt)
    return Verification(
        tensors=len(expected),
        different_tensors=tuple(different),
        damaged_files=tuple(damaged),
        logit_differences=differences,
    )

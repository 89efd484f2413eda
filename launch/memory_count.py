"""The memory of one GPU in a training, counted from a recipe: nothing is allocated.

Weights, gradients and the optimizer's state are counted exactly, of the fullest pipeline stage.
Activations are what a layer keeps for its backward pass with fused attention (the counts of
Korthikanti et al. 2022, section 4, term by term), in the dtype of training; what the framework
itself takes is a constant, and a guess.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from models.hf_code.image_scales import IMAGES_AT_TWO_SCALES

FRAMEWORK_BYTES = 2 * 2**30
"""CUDA's context, NCCL's buffers and workspaces. A guess."""

_SPLIT = re.compile(
    r"\.layers\..*linear_\w+\.weight$|\.layers\..*linear_(qkv|fc1|q|kv)\.bias$"
    r"|word_embeddings\.weight$|output_layer\.weight$"
)
"""Parameters of which every tensor-parallel rank has a part."""

_VISION = re.compile(r"(^|\.)vision_model\.")
_EMBEDDING = "language_model.embedding.word_embeddings.weight"
_OUTPUT = "language_model.output_layer.weight"

_LAYER = re.compile(r"language_model\.decoder\.layers\.")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a training is spread, and in which types.

    Attributes:
        tensor_parallel: degree.
        pipeline_parallel: degree.
        sequence_parallel: whether what is not split by heads or channels is split by positions.
        data_parallel: degree.
        micro_batches: of one step on one rank.
        rows: of a micro-batch.
        positions: of a row.
        images: of a micro-batch at most.
        recompute: whether a layer keeps only its input.
        weight_bytes: of one weight.
        gradient_bytes: of one gradient.
        optimizer_bytes: of the optimizer's state for one weight, over all ranks.
        has_reference: whether what trains is there a second time.
    """

    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    sequence_parallel: bool = False
    data_parallel: int = 1
    micro_batches: int = 1
    rows: int
    positions: int
    images: int
    recompute: bool
    weight_bytes: int = 2
    gradient_bytes: int = 4
    optimizer_bytes: int = 12
    has_reference: bool = False


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Numbers of weights.

    Attributes:
        all: of the model.
        trained: of those.
        on_gpu: on the fullest GPU.
        trained_on_gpu: of those.
    """

    all: int
    trained: int
    on_gpu: int
    trained_on_gpu: int


def count_weights(model: nn.Module, layout: Layout, adapters: int = 0) -> Weights:
    """Count the weights of a model that was built for one GPU.

    Args:
        model: with what is frozen marked so; without adapters.
        layout: how it is spread.
        adapters: number of weights that adapters add to the language model.
    """
    total = trained = adapters
    vision = getattr(getattr(model, "vision_model", None), "config", None)
    whole_vision = getattr(vision, "WHOLE_ON_EACH_RANK", False)
    stages = _Stages(layout.pipeline_parallel)
    stages.add_to_layers(adapters / layout.tensor_parallel, is_trained=True)
    for name, parameter in model.named_parameters():
        count, is_trained = parameter.numel(), parameter.requires_grad
        total += count
        trained += count if is_trained else 0
        is_split = _SPLIT.search(name) and not (whole_vision and _VISION.search(name))
        parts = layout.tensor_parallel if is_split else 1
        stages.add(name, count / parts, is_trained)
    names = dict(model.named_parameters())
    if layout.pipeline_parallel > 1 and _OUTPUT not in names:
        # The last stage has the embedding a second time, as its output layer.
        tied = names[_EMBEDDING]
        stages.add(_OUTPUT, tied.numel() / layout.tensor_parallel, tied.requires_grad)
    for name, buffer in model.named_buffers():  # what is only carried through
        stages.add(name, buffer.numel(), is_trained=False)
    on_gpu, trained_on_gpu = stages.fullest(layout)
    return Weights(
        all=total, trained=trained, on_gpu=round(on_gpu), trained_on_gpu=round(trained_on_gpu)
    )


class _Stages:
    """Weights of each pipeline stage: all of them, and those that train."""

    def __init__(self, number: int) -> None:
        self.counts = [[0.0, 0.0] for _ in range(number)]

    def add(self, name: str, count: float, is_trained: bool) -> None:
        if _LAYER.search(name):
            self.add_to_layers(count, is_trained)
            return
        is_last = "output_layer" in name or "language_model.decoder.final" in name
        self._add(self.counts[-1 if is_last else 0], count, is_trained)

    def add_to_layers(self, count: float, is_trained: bool) -> None:
        for stage in self.counts:
            self._add(stage, count / len(self.counts), is_trained)

    def fullest(self, layout: Layout) -> tuple[float, float]:
        def cost(stage: list[float]) -> float:
            return stage[0] * layout.weight_bytes + stage[1] * layout.gradient_bytes

        everything, trained = max(self.counts, key=cost)
        return everything, trained

    @staticmethod
    def _add(stage: list[float], count: float, is_trained: bool) -> None:
        stage[0] += count
        stage[1] += count if is_trained else 0


def adapter_weights(model: nn.Module, adapts: Any, dim: int, has_lengths: bool) -> int:
    """Count what adapters of a rank add: A and B of every layer, and DoRA's lengths.

    Args:
        model: without them.
        adapts: says of a layer's full name whether it gets one.
        dim: rank.
        has_lengths: whether the adapters are DoRA's.
    """
    total = 0
    for name, parameter in model.named_parameters():
        layer, _, kind = name.rpartition(".")
        if kind != "weight" or not _LAYER.search(name) or not adapts(f"module.{layer}"):
            continue
        if parameter.ndim == 2:
            rows, columns = parameter.shape
            total += dim * (rows + columns) + (rows if has_lengths else 0)
    return total


def activation_bytes(config: Any, layout: Layout) -> int:
    """Count what the first stage keeps of its micro-batches until their backward pass.

    Args:
        config: of a family; it says which parts train.
        layout: how it is spread.
    """
    language, vision = config.language_transformer_config, config.vision_transformer_config
    tokens = layout.rows * layout.positions
    layers = language.num_layers / layout.pipeline_parallel
    in_flight = min(layout.pipeline_parallel, layout.micro_batches)
    kept = in_flight * layers * _layer_bytes(language, tokens, layout, layout.sequence_parallel)
    if not config.freeze_vision_model:
        patches = layout.images * ((vision.image_size // vision.patch_size) ** 2 + 1)
        if len(getattr(vision, "image_scales", ())) > 1:
            patches *= IMAGES_AT_TWO_SCALES
        layers = vision.num_layers + getattr(vision, "num_global_layers", 0)
        # transformers' tower is not split over ranks.
        is_whole = getattr(vision, "WHOLE_ON_EACH_RANK", False)
        split = replace(layout, tensor_parallel=1) if is_whole else layout
        kept += in_flight * layers * _layer_bytes(vision, patches, split, False)
    # Of the layer that is computed again, everything; of the loss, logits in both precisions and
    # their gradient.
    if layout.recompute:
        whole = _whole_layer(language, tokens, layout, layout.sequence_parallel)
        kept += layout.weight_bytes * whole
    if layout.pipeline_parallel == 1:
        logits = tokens * language.vocab_size / layout.tensor_parallel
        kept += logits * (2 * layout.weight_bytes + 4)
    return round(kept)


def _layer_bytes(config: Any, tokens: int, layout: Layout, by_positions: bool) -> float:
    if layout.recompute:
        parts = layout.tensor_parallel if by_positions else 1
        return layout.weight_bytes * tokens * config.hidden_size / parts
    return layout.weight_bytes * _whole_layer(config, tokens, layout, by_positions)


def _whole_layer(config: Any, tokens: int, layout: Layout, by_positions: bool) -> float:
    """Count the values that a layer keeps: inputs of norms, products and attention."""
    split = layout.tensor_parallel
    whole = split if by_positions else 1
    heads = config.num_attention_heads * config.kv_channels
    groups = (config.num_query_groups or config.num_attention_heads) * config.kv_channels
    inner = config.ffn_hidden_size
    # Two norms' inputs, two normed inputs of products; query, key, value, attention's output; the
    # MLP's first product (two where it is gated) and the activation.
    values = 4 * config.hidden_size / whole + (2 * heads + 2 * groups) / split
    values += inner * (3 if config.gated_linear_unit else 2) / split
    if config.hidden_dropout:
        values += 2 * config.hidden_size / (whole * layout.weight_bytes)  # masks of one byte
    return tokens * values


@dataclass(frozen=True, kw_only=True)
class MemoryCount:
    """Bytes on the fullest GPU, by what they are for."""

    weights: int
    gradients: int
    optimizer: int
    reference: int
    activations: int
    framework: int = FRAMEWORK_BYTES

    def rows(self) -> Iterator[tuple[str, int]]:
        """Yield what, and how much."""
        yield from vars(self).items()

    @property
    def total(self) -> int:
        """All of it."""
        return sum(vars(self).values())


def count_memory(config: Any, weights: Weights, layout: Layout) -> MemoryCount:
    """Count the memory of a training.

    Args:
        config: of the family.
        weights: of the model.
        layout: how it is spread.
    """
    trained = weights.trained_on_gpu
    return MemoryCount(
        weights=weights.on_gpu * layout.weight_bytes,
        gradients=trained * layout.gradient_bytes,
        optimizer=round(trained * layout.optimizer_bytes / layout.data_parallel),
        reference=trained * layout.weight_bytes if layout.has_reference else 0,
        activations=activation_bytes(config, layout),
    )

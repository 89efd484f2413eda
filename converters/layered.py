"""Both sides of a conversion computed with the weights of one module in memory at a time.

A model is built without memory for its parameters. Before a module computes, its own parameters are
read, in fp32, and they are gone when it is done; so a model of any size can be compared, at the
price of reading it once for every prompt. What each layer of the language model gives is compared
too, which says where two models part.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import AutoProcessor

from converters.checkpoint import single_process
from converters.family import Family
from converters.finished import open_checkpoint
from converters.hf_weights import HfWeights
from converters.lazy import LazyTensor
from converters.nemo_weights import open_weights
from converters.structure import empty_model

LOGITS = "logits"
_EMBEDDING = "language_model.embedding.word_embeddings"


def compare_layers(family: Family, hf: Path, ckpt: str | Path) -> dict[str, dict[str, float]]:
    """Run both models, in fp32, on each kind of prompt.

    Args:
        family: of both.
        hf: Hugging Face directory.
        ckpt: NeMo checkpoint.

    Returns:
        By kind of prompt, and in it by layer of the language model and for "logits": the largest
        absolute difference; of a layer as a part of the largest activation there.
    """
    _, assets = open_checkpoint(ckpt)
    hf_weights = HfWeights(hf)
    hf_tensors = family.disk_tensors(hf, family.known_tensors(hf, hf_weights))
    with init_empty_weights(include_buffers=False):
        reference = family.hf_model(hf).eval()
    reference.tie_weights()
    stream(reference, {family.memory_name(k): v for k, v in hf_tensors.items()}, hf_weights.release)
    weights = open_weights(ckpt, [row.megatron_key for row in family.table(assets)])
    processor = AutoProcessor.from_pretrained(hf, trust_remote_code=family.runs_directory_code)
    differences: dict[str, dict[str, float]] = {}
    with single_process(), torch.no_grad():
        module = empty_model(family.describe(assets), torch.float32).eval()
        tied = (_EMBEDDING,) if module.share_embeddings_and_output_weights else ()
        stream(module, weights.tensors, weights.release, resident=tied)
        for kind, prompt in family.prompts(processor, reference.config).items():
            images = list(prompt.images) or None
            inputs = processor(text=prompt.text, images=images, return_tensors="pt")
            with recorded(reference, family.hf_layers(assets)) as wanted:
                wanted[LOGITS] = reference(**inputs).logits
            with recorded(module, "language_model.decoder.layers") as found:
                found[LOGITS] = module(**family.model_inputs(processor, inputs))
            differences[kind] = _differences(wanted, found)
    return differences


def stream(
    model: nn.Module,
    tensors: Mapping[str, LazyTensor],
    release: Callable[[], None],
    resident: Collection[str] = (),
) -> None:
    """Let every module of a model read its own parameters when it computes, and drop them after.

    Args:
        model: without memory for its parameters.
        tensors: by the parameters' names; of tied ones, one name is enough.
        release: gives back the memory of what was read.
        resident: names of modules that other modules read the parameters of: these stay.
    """
    names: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in tensors:
            names[id(parameter)] = name
    for path, module in model.named_modules():
        own = {
            name: tensors[names[id(parameter)]]
            for name, parameter in module._parameters.items()
            if parameter is not None
        }
        if path in resident:
            module._parameters.update(_read(own))
        elif own:
            _hook(module, own, release)


def _hook(module: nn.Module, own: Mapping[str, LazyTensor], release: Callable[[], None]) -> None:
    # Whoever asks for the device finds one, and whoever computes with these sees that it is wrong.
    nothing = torch.full((1,), float("nan"))
    empty = {
        name: nn.Parameter(nothing.expand(tensor.shape), requires_grad=False)
        for name, tensor in own.items()
    }

    def read(*_: Any) -> None:
        module._parameters.update(_read(own))

    def drop(*_: Any) -> None:
        module._parameters.update(empty)
        release()

    drop()
    module.register_forward_pre_hook(read)
    module.register_forward_hook(drop)


def _read(own: Mapping[str, LazyTensor]) -> dict[str, nn.Parameter]:
    return {
        name: nn.Parameter(tensor.whole().to(torch.float32, copy=True), requires_grad=False)
        for name, tensor in own.items()
    }


@contextmanager
def recorded(model: nn.Module, layers: str) -> Iterator[dict[str, Tensor]]:
    """Yield a dictionary that gets the output of each layer: float[positions, width]."""
    outputs: dict[str, Tensor] = {}
    handles = [
        layer.register_forward_hook(_note(outputs, f"layer {number}"))
        for number, layer in enumerate(model.get_submodule(layers))
    ]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def _note(outputs: dict[str, Tensor], name: str) -> Callable[..., None]:
    def note(_: nn.Module, __: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        # One sample: [batch, positions, width] and [positions, batch, width] are the same numbers.
        outputs[name] = hidden.reshape(-1, hidden.shape[-1]).clone()

    return note


def _differences(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> dict[str, float]:
    differences = {}
    # Without an image, transformers leaves the layers out that would attend to it.
    for name in (name for name in wanted if name in found):
        tensor = wanted[name]
        difference = (tensor - found[name]).abs().max().item()
        if name != LOGITS:
            difference /= max(1.0, tensor.abs().max().item())
        differences[name] = difference
    return differences

"""Put a vision tower, a fresh projector and a language model together: the start of stage 1."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from math import prod
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from converters.assembly import Assembly
from converters.checkpoint_writer import fitting_structure, write_checkpoint
from converters.hf_weights import HfWeights
from converters.lazy import HeldTensor, LazyTensor, Stacked, cast, row_ranges
from converters.mapping import to_megatron, without_dropped
from converters.nvila_assembly import NvilaAssembly
from converters.output import new_directory, refuse_existing
from converters.parents import read_parent_config
from converters.request import DEFAULT, Request, in_one_dtype, plan, total_bytes


def assemble(
    llm: str | Path,
    vision: str | Path,
    out: str | Path,
    assembly: Assembly | None = None,
    seed: int = 1234,
    request: Request = DEFAULT,
) -> dict[str, object]:
    """Write a NeMo checkpoint made of two Hugging Face models and a fresh projector.

    The vocabulary becomes exactly the tokenizer's: padding rows of the published tables are cut and
    each new row is the mean of the rows before it, as in NVILA's published code. All parts take the
    dtype of the language model, or the requested one.

    Args:
        llm: Hugging Face directory of a language model with a tokenizer.
        vision: Hugging Face directory of a vision model, or of one that has it as a part.
        out: checkpoint to write; must not exist or be empty.
        assembly: of the family; None is NVILA with its defaults.
        seed: of the projector's initialisation (PyTorch's defaults).
        request: how to convert.

    Returns:
        Figures about what was written, or would be.

    Raises:
        ValueError: an input is no model of the expected family, or `out` is not empty or has no
            room.
    """
    assembly = assembly or NvilaAssembly()
    refuse_existing(out)
    text_config = read_parent_config(llm, assembly.language_configs, "llm")
    vision_config = read_parent_config(vision, assembly.vision_configs, "vision")
    tokenizer = _load_tokenizer(llm)
    known = len(tokenizer)
    assembly.prepare_tokenizer(tokenizer, llm)
    text_config.vocab_size = len(tokenizer)
    language, tower = (
        HfWeights(llm, assembly.language_prefix),
        HfWeights(vision, assembly.vision_prefix),
    )
    tensors = _language_tensors(assembly, f"llm: {llm}", language, text_config, known, request)
    dtype = next(iter(tensors.values())).dtype
    found = assembly.vision_names(vision_config, tower.tensors)
    drops = assembly.vision_drops(vision_config)
    kept = without_dropped(drops, found, f"vision: {vision}", tower.release)
    tensors |= {name: cast(tensor, dtype) for name, tensor in kept.items()}
    description = assembly.describe(text_config, vision_config, tokenizer)
    description.torch_dtype = dtype
    tensors |= _fresh_projector(assembly, description, seed)
    megatron = to_megatron(assembly.table(description), tensors)
    config = assembly.megatron_config(description)
    if request.dry_run:
        fitting_structure(config, megatron)
        return plan(megatron, out)
    release = partial(_release, language, tower)
    with (
        new_directory(out, total_bytes(megatron)) as folder,
        tempfile.TemporaryDirectory() as assets,
    ):
        assembly.write_assets(Path(assets), description, tokenizer, vision)
        write_checkpoint(folder, config, megatron, Path(assets), release, request.jobs)
    return {
        "parameters": sum(prod(tensor.shape) for tensor in tensors.values()),
        "dtype": str(dtype).removeprefix("torch."),
        "vocabulary": len(tokenizer),
    }


def _release(*weights: HfWeights) -> None:
    for one in weights:
        one.release()


def _load_tokenizer(llm: str | Path) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(llm)
    except (OSError, ValueError) as error:
        raise ValueError(f"llm: {llm} has no tokenizer that transformers can load.") from error


def _language_tensors(
    assembly: Assembly,
    place: str,
    weights: HfWeights,
    config: PretrainedConfig,
    known: int,
    request: Request,
) -> dict[str, LazyTensor]:
    """Return a language model in one dtype, its vocabulary of the size that `config` says.

    The tables' first `known` rows are those of the tokenizer as it came.
    """
    tensors = assembly.language_names(config, weights.tensors)
    tensors = without_dropped(assembly.language_drops(config), tensors, place, weights.release)
    tensors = in_one_dtype(tensors, request.dtype, place)
    tables = {f"{assembly.language_prefix}{name}" for name in assembly.vocabulary_tables}
    for name in tensors.keys() & tables:
        tensors[name] = _with_means(tensors[name], known, config.vocab_size, weights.release)
    return tensors


def _with_means(
    table: LazyTensor, known: int, vocabulary: int, release: Callable[[], None]
) -> LazyTensor:
    """Return the first `known` rows, and behind them rows that are the mean of all before.

    The rows that Qwen's tables have beyond its tokenizer were never trained: they are no start for
    the added tokens.
    """
    kept = min(known, vocabulary, table.rows)
    total = torch.zeros(table.shape[1], dtype=torch.float64)
    for start, stop in row_ranges(kept, table.nbytes):
        total += table.read(start, stop).sum(dim=0, dtype=torch.float64)
        release()
    added: list[Tensor] = []
    for count in range(kept, vocabulary):
        row = (total / count).to(table.dtype)
        added.append(row)
        total += row.double()
    runs: list[tuple[LazyTensor | None, int, int]] = [(table, 0, kept)]
    if added:
        runs.append((HeldTensor(torch.stack(added)), 0, len(added)))
    return Stacked(tuple(runs), (vocabulary, table.shape[1]), table.dtype)


def _fresh_projector(
    assembly: Assembly, description: PretrainedConfig, seed: int
) -> dict[str, LazyTensor]:
    config = assembly.megatron_config(description)
    config.params_dtype = description.torch_dtype
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = assembly.projector(config).state_dict()
    return {
        f"{assembly.projector_prefix}{name}": HeldTensor(tensor) for name, tensor in state.items()
    }

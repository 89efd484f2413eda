"""Put a vision tower, a fresh projector and a language model together: the start of stage 1."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from math import prod
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerBase,
    Qwen2Config,
    SiglipVisionConfig,
)

from converters.checkpoint_writer import fitting_structure, write_checkpoint
from converters.hf_directory import write_assets
from converters.hf_weights import HfWeights
from converters.lazy import HeldTensor, LazyTensor, Stacked, cast, row_ranges
from converters.mapping import to_megatron, without_dropped
from converters.nvila import EMBEDDING, OUTPUT, WHOLE_SIGLIP, nvila_drops, nvila_table
from converters.output import new_directory, refuse_existing
from converters.parents import read_parent_config
from converters.request import DEFAULT, Request, in_one_dtype, plan, total_bytes
from models.nvila.config import config_from_hf
from models.nvila.hf_code.configuration_nvila_lite import NVILALiteConfig
from models.nvila.projector import build_projector

MEDIA_TOKENS = ("<vila/sentinel>", "<image>", "<vila/video>")
"""Added to the language model's tokenizer in the published order."""

BEGIN_TOKEN, PADDING_TOKEN = "[BOS]", "[PAD]"
"""Added after them: [BOS] where the tokenizer has none, [PAD] always, as published."""


def assemble(
    llm: str | Path,
    vision: str | Path,
    out: str | Path,
    projector: str = "mlp_downsample_2x2_fix",
    max_tiles: int = 12,
    seed: int = 1234,
    request: Request = DEFAULT,
) -> dict[str, object]:
    """Write a NeMo checkpoint made of two Hugging Face models and a fresh projector.

    The vocabulary becomes exactly the tokenizer's: the padding rows of the published Qwen tables
    are cut and each new row is the mean of the rows before it, as in the published code. All parts
    take the dtype of the language model, or the requested one.

    Args:
        llm: Hugging Face directory of a Qwen2 model with a tokenizer and a chat template.
        vision: Hugging Face directory of a SigLIP (vision) model.
        out: checkpoint to write; must not exist or be empty.
        projector: mlp_downsample_2x2_fix or mlp_downsample_3x3_fix.
        max_tiles: tiles of one image at inference, the thumbnail not counted.
        seed: of the projector's initialisation (PyTorch's defaults).
        request: how to convert.

    Returns:
        Figures about what was written, or would be.

    Raises:
        ValueError: an input is no model of the expected family, or `out` is not empty or has no
            room.
    """
    refuse_existing(out)
    text_config = read_parent_config(llm, Qwen2Config, "llm")
    vision_config = read_parent_config(vision, SiglipVisionConfig, "vision")
    tokenizer = _load_tokenizer(llm)
    known = len(tokenizer)
    _extend_tokenizer(tokenizer)
    text_config.vocab_size = len(tokenizer)
    llm_weights, vision_weights = HfWeights(llm, "llm."), HfWeights(vision, "vision_tower.")
    language = _language_tensors(f"llm: {llm}", llm_weights, text_config, known, request.dtype)
    dtype = next(iter(language.values())).dtype
    tower = without_dropped(WHOLE_SIGLIP, vision_weights.tensors, f"vision: {vision}")
    description = NVILALiteConfig(
        text_config=text_config,
        vision_config=vision_config,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        newline_token_id=_newline_id(tokenizer, llm),
        mm_projector_type=projector,
        max_tiles=max_tiles,
    )
    description.torch_dtype = dtype
    tensors = (
        language
        | {name: cast(tensor, dtype) for name, tensor in tower.items()}
        | _fresh_projector(description, seed)
    )
    megatron = to_megatron(nvila_table(description), tensors)
    if request.dry_run:
        fitting_structure(config_from_hf(description), megatron)
        return plan(megatron, out)
    with (
        new_directory(out, total_bytes(megatron)) as folder,
        tempfile.TemporaryDirectory() as assets,
    ):
        write_assets(Path(assets), description, tokenizer)
        write_checkpoint(
            folder,
            config_from_hf(description),
            megatron,
            Path(assets),
            partial(_release, llm_weights, vision_weights),
            request.jobs,
        )
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
        tokenizer = AutoTokenizer.from_pretrained(llm)
    except (OSError, ValueError) as error:
        raise ValueError(f"llm: {llm} has no tokenizer that transformers can load.") from error
    if not tokenizer.chat_template:
        raise ValueError(
            f"llm: the tokenizer of {llm} has no chat template; use an instruction-tuned model or "
            "add chat_template.jinja."
        )
    return tokenizer


def _extend_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.add_special_tokens(
        {"additional_special_tokens": list(MEDIA_TOKENS)},
        replace_additional_special_tokens=False,
    )
    if tokenizer.bos_token is None:
        tokenizer.add_special_tokens({"bos_token": BEGIN_TOKEN})
    tokenizer.add_special_tokens({"pad_token": PADDING_TOKEN})


def _newline_id(tokenizer: PreTrainedTokenizerBase, llm: str | Path) -> int:
    ids = tokenizer.encode("\n", add_special_tokens=False)
    if len(ids) != 1:
        raise ValueError(
            f"llm: the tokenizer of {llm} splits a newline into {len(ids)} tokens; it must be one."
        )
    return ids[0]


def _language_tensors(
    place: str, weights: HfWeights, config: Qwen2Config, known: int, dtype: str | None
) -> dict[str, LazyTensor]:
    """Return a language model in one dtype, its vocabulary of the size that `config` says.

    The tables' first `known` rows are those of the tokenizer as it came.
    """
    tensors = without_dropped(nvila_drops(config), weights.tensors, place, weights.release)
    tensors = in_one_dtype(tensors, dtype, place)
    for name in tensors.keys() & {EMBEDDING, OUTPUT}:
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


def _fresh_projector(description: NVILALiteConfig, seed: int) -> dict[str, LazyTensor]:
    config = config_from_hf(description)
    config.params_dtype = description.torch_dtype
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = build_projector(config).state_dict()
    return {f"mm_projector.{name}": HeldTensor(tensor) for name, tensor in state.items()}

"""Greedy answers of the Megatron-Core MLlama, from the samples that its training would see.

Nothing is shared with the way the exported model is asked: prompts, tiles and attention spans come
from the training's encoder, every token is a full forward pass without a cache. Equal answers of
both sides therefore say that training and serving see the same thing.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datamodules.conversation import IGNORED
from datamodules.images import ImageFolder
from datamodules.mllama_collate import MllamaSample
from datamodules.sample_encoder import open_encoder
from models.mllama.image_spans import image_spans
from sample_loaders.conversation import ConversationSample, parse_llava

_SEQ_LENGTH = 4096


def read_conversations(data: Path, limit: int) -> list[ConversationSample]:
    """Read the first records of a LLaVA JSONL file; their ids are the keys."""
    with data.open(encoding="utf-8") as file:
        records = [json.loads(line) for line in islice(file, limit)]
    return [parse_llava(record, record["id"], data.name) for record in records]


def greedy_answers(
    checkpoint: Path,
    conversations: Sequence[ConversationSample],
    image_folder: Path,
    max_new_tokens: int,
) -> dict[str, str]:
    """Answer the first question of each conversation.

    Args:
        checkpoint: NeMo checkpoint; it is run in fp32 on this process.
        conversations: with an answer, which is cut off.
        image_folder: where their images lie.
        max_new_tokens: longest answer in tokens.

    Returns:
        The answers by key, without special tokens and surrounding white space.
    """
    from transformers import AutoTokenizer, GenerationConfig

    from converters.checkpoint import load_model, single_process
    from models.checkpoint_paths import find_assets

    assets = find_assets(checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(assets)
    ends = GenerationConfig.from_pretrained(assets).eos_token_id
    end_ids = {ends} if isinstance(ends, int) else set(ends)
    encoder = open_encoder(str(assets), _SEQ_LENGTH, image_resize="exact")
    encoder.prepare()
    store = ImageFolder(image_folder)
    answers = {}
    with single_process():
        config, module = load_model(checkpoint, torch.float32)
        assert config.image_token_id is not None  # its assets say it
        module.eval()
        collate = encoder.collator(pad_to_multiple_of=1, fixed_length=None)
        for conversation in conversations:
            prompt = cut_answer(encoder.encode(conversation, store))
            new_ids = continue_greedily(
                module, collate, prompt, config.image_token_id, end_ids, max_new_tokens
            )
            text = tokenizer.decode(new_ids, skip_special_tokens=True)
            answers[conversation.key] = text.strip()
    return answers


def cut_answer(sample: MllamaSample) -> MllamaSample:
    """Return what stands before the first token that is learnt."""
    # Labels are shifted: the first one stands where its token is predicted.
    last = int(np.flatnonzero(sample.labels != IGNORED)[0])
    return replace(sample, tokens=sample.tokens[: last + 1], labels=sample.labels[: last + 1])


def continue_greedily(
    module: Any,
    collate: Any,
    prompt: MllamaSample,
    image_token_id: int,
    end_ids: Collection[int],
    max_new_tokens: int,
) -> list[int]:
    """Append the likeliest token until one of `end_ids` or the limit comes.

    Args:
        module: returns logits float[1, s, vocabulary].
        collate: makes its arguments from a list of samples.
        prompt: where to begin.
        image_token_id: what attends to images is found again for every length.
        end_ids: they are part of the result.
        max_new_tokens: at most so many are appended.

    Returns:
        The new tokens.
    """
    tokens = prompt.tokens
    while len(tokens) - len(prompt.tokens) < max_new_tokens:
        sample = replace(
            prompt,
            tokens=tokens,
            labels=np.full_like(tokens, IGNORED),
            image_spans=image_spans(tokens, image_token_id),
        )
        batch = collate([sample])
        arguments = {
            name: batch[name]
            for name in (
                "tokens",
                "position_ids",
                "tiles",
                "tiles_per_image",
                "aspect_ratio_ids",
                "images_per_sample",
                "image_spans",
            )
        }
        with torch.no_grad():
            logits = module(**arguments)
        tokens = np.append(tokens, int(logits[0, len(tokens) - 1].argmax()))
        if int(tokens[-1]) in end_ids:
            break
    return tokens[len(prompt.tokens) :].tolist()


def equal_share(found: dict[str, str], expected: dict[str, str]) -> float:
    """Return the share of the answers in `found` that are the expected ones (0 to 1)."""
    assert found, "no question was asked"
    return sum(text == expected[key] for key, text in found.items()) / len(found)

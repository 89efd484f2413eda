"""Answers of the Megatron-Core MLlama beside those of its Hugging Face directory."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.mllama_collate import MllamaCollator, MllamaSample
from launch.quickstart.megatron_greedy import (
    continue_greedily,
    cut_answer,
    equal_share,
    greedy_answers,
    read_conversations,
)

IMAGE = 9


def sample(tokens, labels=None):
    tokens = np.array(tokens)
    return MllamaSample(
        key="a",
        tokens=tokens,
        labels=np.full_like(tokens, -100) if labels is None else np.array(labels),
        tiles=np.zeros((1, 3, 4, 4), dtype=np.uint8),
        tiles_per_image=np.array([1]),
        aspect_ratio_ids=np.array([1]),
        image_spans=np.array([[1, len(tokens)]]),
    )


def test_the_prompt_ends_before_the_first_learnt_token():
    # The tokens 5 and 6 are learnt: each is predicted one position earlier.
    cut = cut_answer(sample([1, IMAGE, 2, 5, 6], [-100, -100, 5, 6, -100]))
    assert cut.tokens.tolist() == [1, IMAGE, 2]


def counting_model(calls):
    """Predicts the last token plus one."""

    def module(tokens, **arguments):
        calls.append((tokens.shape[1], arguments["image_spans"].tolist()))
        return torch.nn.functional.one_hot(tokens + 1, 16).float()

    return module


@pytest.mark.parametrize(
    ("ends", "limit", "expected"),
    [({7, 8}, 9, [4, 5, 6, 7]), ({3}, 2, [4, 5]), ({4}, 5, [4])],
)
def test_the_likeliest_token_is_appended_until_the_end(ends, limit, expected):
    calls = []
    collate = MllamaCollator(pad_token_id=0, pad_to_multiple_of=1, fixed_length=None)
    prompt = sample([1, IMAGE, 3])
    found = continue_greedily(counting_model(calls), collate, prompt, IMAGE, ends, limit)
    assert found == expected
    # Every forward pass sees one token more, and the image is seen up to the last one.
    assert calls == [(length, [[1, length]]) for length in range(3, 3 + len(expected))]


def test_equal_share():
    expected = {"a": "1", "b": "2", "c": "3"}
    assert equal_share({"a": "1", "b": "3"}, expected) == 0.5
    assert equal_share(dict(expected), expected) == 1.0


def test_megatron_answers_what_the_exported_model_does(single_process, tmp_path):
    from transformers import MllamaForConditionalGeneration

    from converters.import_hf import import_checkpoint
    from evaluation.exact_match import exact_match
    from evaluation.generation import load
    from launch.quickstart.mllama_parent import write_mllama

    hf, checkpoint = tmp_path / "hf", tmp_path / "checkpoint"
    write_mllama(hf, seed=3)
    model = MllamaForConditionalGeneration.from_pretrained(hf)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:  # large, so that every image has an answer of its own
                parameter.mul_(1.5).add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    model.save_pretrained(hf)
    import_checkpoint("mllama", hf, checkpoint)
    random = np.random.default_rng(0)
    lines = []
    for number, columns in enumerate((1, 3, 2, 4, 1)):
        pixels = random.integers(0, 256, (56, 56 * columns), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        turns = [{"from": "human", "value": "<image>\n何ですか?"}, {"from": "gpt", "value": "x"}]
        record = {"id": f"q{number}", "image": f"{number}.png", "conversations": turns}
        lines.append(json.dumps(record) + "\n")
    (tmp_path / "data.jsonl").write_text("".join(lines))

    expected = exact_match(*load(hf), tmp_path / "data.jsonl", tmp_path, max_new_tokens=5)
    conversations = read_conversations(tmp_path / "data.jsonl", 4)
    found = greedy_answers(checkpoint, conversations, tmp_path, 5)
    assert list(found) == ["q0", "q1", "q2", "q3"]
    assert len(set(found.values())) == 4
    assert equal_share(found, {row.id: row.answer for row in expected.rows}) == 1.0

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, MllamaForConditionalGeneration

from evaluation.exact_match import exact_match
from evaluation.families import FAMILIES
from evaluation.generation import answer, check_query, load, open_processor
from evaluation.query import Query

FAMILY = FAMILIES["mllama"]


def noise_image(columns, rows=1, seed=0):
    shape = (56 * rows, 56 * columns, 3)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """An MLlama whose every part moves the logits."""
    from launch.quickstart.mllama_parent import MllamaShape, write_mllama

    path = tmp_path_factory.mktemp("export") / "mllama"
    shape = MllamaShape(vision_width=48, vision_mlp_width=64, text_width=64, text_mlp_width=96)
    write_mllama(path, shape=shape)
    model = MllamaForConditionalGeneration.from_pretrained(path)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(1.5).add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def loaded(directory):
    return load(directory)


def mixed_queries():
    return [
        Query.ask("数字を左から順に読んでください。", [noise_image(4, seed=1)]),
        Query.ask("1 2 3"),
        Query.ask("何?", [noise_image(1, seed=2)]),
        Query.ask("前<image>と<image>\nの違いは?", [noise_image(1, 3), noise_image(2, seed=4)]),
        Query.ask("この画像の数字は何ですか?", [noise_image(2, 2, seed=7)]),
        Query.ask("これは画像のない長めの質問です。"),
        Query(
            [
                {"role": "user", "content": "<image>\n一つ目"},
                {"role": "assistant", "content": "3"},
                {"role": "user", "content": "二つ目<image>"},
            ],
            [noise_image(1, seed=5), noise_image(3, seed=6)],
        ),
        Query([{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]),
    ]


def greedy_alone(directory, query, text, max_new_tokens):
    """Answers without a cache, from the prompt as a user would write it by hand."""
    model = MllamaForConditionalGeneration.from_pretrained(directory).eval()
    processor = AutoProcessor.from_pretrained(directory)
    ends = model.generation_config.eos_token_id
    new = []
    while len(new) < max_new_tokens and not (new and new[-1] in ends):
        # The processor finds the spans in the ids, so it has to see the text as it grows.
        inputs = processor(
            images=[list(query.images)] if query.images else None,
            text=[text],
            add_special_tokens=False,
            return_tensors="pt",
        )
        length = inputs["input_ids"].shape[1]
        inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([new]).long()], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        if query.images:
            mask = inputs["cross_attention_mask"]
            inputs["cross_attention_mask"] = torch.cat(
                [mask, mask[:, -1:].expand(-1, inputs["input_ids"].shape[1] - length, -1, -1)],
                dim=1,
            )
        with torch.no_grad():
            new.append(int(model(**inputs, use_cache=False).logits[0, -1].argmax()))
    return processor.decode(new, skip_special_tokens=True).strip()


def test_answers_do_not_depend_on_the_batch(loaded):
    model, processor = loaded
    queries = mixed_queries()
    alone = [answer(model, processor, [query], max_new_tokens=8)[0] for query in queries]
    assert len(set(alone)) == len(queries)
    progress = []
    together = answer(
        model,
        processor,
        queries,
        max_new_tokens=8,
        batch_size=3,
        progress=lambda done, total: progress.append((done, total)),
    )
    assert together == alone
    assert progress == [(3, 8), (6, 8), (8, 8)]


def test_logits_of_a_batch_are_those_of_its_samples_alone(loaded):
    model, processor = loaded
    for images in (0, 1, 2):
        queries = [query for query in mixed_queries() if len(query.images) == images]
        with torch.no_grad():
            batch = FAMILY.inputs(processor, queries)
            together = model(**batch, use_cache=False).logits
            assert batch["attention_mask"].eq(0).any()  # there is padding
            for row, query in enumerate(queries):
                logits = model(**FAMILY.inputs(processor, [query]), use_cache=False).logits[0]
                difference = together[row, -len(logits) :] - logits
                assert difference.abs().max() < 1e-4
                assert logits.std() > 0.1


def test_a_filled_up_row_would_answer_differently(loaded):
    """Why queries with different numbers of images do not share a batch."""
    model, processor = loaded
    one, two = mixed_queries()[2:4]
    with torch.no_grad():
        together = model(**FAMILY.inputs(processor, [one, two]), use_cache=False).logits[0]
        alone = model(**FAMILY.inputs(processor, [one]), use_cache=False).logits[0]
    assert (together[-len(alone) :] - alone).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("index", "text"),
    [
        (0, "<|image|>数字を左から順に読んでください。"),
        (3, "前<|image|>と<|image|>の違いは?"),
    ],
)
def test_answer_is_the_greedy_continuation(directory, loaded, index, text):
    prompt = (
        f"<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{text}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    query = mixed_queries()[index]
    expected = greedy_alone(directory, query, prompt, 6)
    assert answer(*loaded, [query], max_new_tokens=6) == [expected]


def test_a_prompt_does_not_change_with_the_day(loaded):
    prompt = FAMILY.prompt(loaded[1], Query.ask("q"))
    assert "Today Date: 26 Jul 2024\n" in prompt
    assert prompt.count("<|begin_of_text|>") == 1
    (ids,) = FAMILY.inputs(loaded[1], [Query.ask("q")])["input_ids"].tolist()
    assert ids.count(loaded[1].tokenizer.bos_token_id) == 1


def test_what_is_transparent_is_white(loaded, tmp_path):
    clear = Image.new("RGBA", (56, 56), (255, 0, 0, 0))
    clear.save(tmp_path / "clear.png")
    inputs = [
        FAMILY.inputs(loaded[1], [Query.ask("q", [image])])["pixel_values"]
        for image in (tmp_path / "clear.png", Image.new("RGB", (56, 56), "white"))
    ]
    assert torch.equal(*inputs)


def test_no_code_is_trusted(directory, monkeypatch):
    import evaluation.generation as module

    trusted = []

    class Loader:
        @staticmethod
        def from_pretrained(path, trust_remote_code, **options):
            trusted.append(trust_remote_code)
            raise InterruptedError

    monkeypatch.setattr(module, "AutoProcessor", Loader)
    with pytest.raises(InterruptedError):
        load(directory)
    assert trusted == [False]


def test_conversations_that_cannot_be_asked(loaded):
    processor = loaded[1]
    image = noise_image(1)
    system = {"role": "system", "content": "s"}
    question = {"role": "user", "content": "<image>q"}
    for query, message in (
        (Query([system, question], [image]), "refuses the conversation"),
        (Query([question]), "1 <image> placeholders for 0 images"),
        (Query([question], [image, image]), "1 <image> placeholders for 2 images"),
    ):
        with pytest.raises(ValueError, match=message):
            check_query(FAMILY, processor, query)
        with pytest.raises(ValueError, match=message):
            answer(*loaded, [Query.ask("q"), query])


def test_exact_match_with_japanese_roles(loaded, tmp_path):
    noise_image(1).save(tmp_path / "1.png")

    def score(truth):
        turns = [
            {"from": "ユーザー", "value": "<image>\n何?"},
            {"from": "アシスタント", "value": truth},
        ]
        record = {"id": "a", "image": "1.png", "conversations": turns}
        (tmp_path / "data.jsonl").write_text(json.dumps(record), encoding="utf-8")
        return exact_match(*loaded, tmp_path / "data.jsonl", tmp_path, max_new_tokens=4)

    first = score("x")
    assert first.score == 0
    assert first.rows[0].question == "<image>\n何?"
    assert score(first.rows[0].answer).score == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '{"model_type": "bert"}',
            "holds a model of type 'bert'; nvila_lite or llava or neva_llava or mllama",
        ),
        ("{}", "holds a model of type None"),
        ("[]", "is not a JSON object"),
        ("{", "is not JSON"),
    ],
)
def test_other_directories_are_refused(tmp_path, content, message):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=f"^hf: .*{message}"):
        open_processor(tmp_path)

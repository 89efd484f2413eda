"""Masks against hand-written text: every case spells out what is learnt and what is not."""

import re
from itertools import groupby

import numpy as np
import pytest

from datamodules.conversation import (
    END_MARKER,
    START_MARKER,
    check_chat_template,
    shifted_labels,
    tokenize_conversation,
)
from datamodules.nvila_assets import nvila_message
from models.mllama.prompt import chat_message
from sample_loaders.conversation import Turn
from sample_loaders.errors import BadSample, Reason

DEFAULT = "<|im_start|>system\nあなたは日本語で答えるアシスタントです。<|im_end|>\n"
CHATML_PROMPT = (
    "{{% for m in messages %}}<|im_start|>{{{{ m['role'] }}}}\n{{{{ m['content'] }}}}<|im_end|>\n"
    "{{% endfor %}}{{% if add_generation_prompt %}}<|im_start|>assistant\n{}{{% endif %}}"
)
TILE = re.compile("<image>\n?")
USER, ASSISTANT, END = "<|im_start|>user\n", "<|im_start|>assistant\n", "<|im_end|>"


def dialogue(*texts, system=None):
    turns = [] if system is None else [Turn(role="system", text=system)]
    roles = ("user", "assistant")
    return turns + [Turn(role=roles[n % 2], text=text) for n, text in enumerate(texts)]


def render(turns, tokenizer, make_message=nvila_message):
    template = check_chat_template(tokenizer, make_message)
    return template.render([make_message(turn.role, turn.text) for turn in turns])


def stretches(turns, tokenizer, make_message=nvila_message, image=TILE):
    """The text in stretches of tokens that are, or are not, learnt: [(learnt, decoded), ...]."""
    rendered = render(turns, tokenizer, make_message)
    ids, supervised = tokenize_conversation(rendered, tokenizer, image)
    assert ids.dtype == np.int64
    assert tokenizer.decode(ids) == rendered.text
    return [
        (bool(learnt), tokenizer.decode([token for token, _ in group]))
        for learnt, group in groupby(zip(ids, supervised, strict=True), key=lambda pair: pair[1])
    ]


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        pytest.param(
            dialogue("What is this?", "It is a cat."),
            [
                (False, DEFAULT + USER + "What is this?" + END + "\n" + ASSISTANT),
                (True, "It is a cat." + END),
                (False, "\n"),
            ],
            id="one turn",
        ),
        pytest.param(
            dialogue("Q1", "A1", "Q2", "A2", "Q3", "A3"),
            [
                (False, DEFAULT + USER + "Q1" + END + "\n" + ASSISTANT),
                (True, "A1" + END),
                (False, "\n" + USER + "Q2" + END + "\n" + ASSISTANT),
                (True, "A2" + END),
                (False, "\n" + USER + "Q3" + END + "\n" + ASSISTANT),
                (True, "A3" + END),
                (False, "\n"),
            ],
            id="several turns",
        ),
        pytest.param(
            dialogue("Q", "A", system="Be brief."),
            [
                (
                    False,
                    "<|im_start|>system\nBe brief." + END + "\n" + USER + "Q" + END + "\n"
                    "<|im_start|>assistant\n",
                ),
                (True, "A" + END),
                (False, "\n"),
            ],
            id="own system prompt",
        ),
        pytest.param(
            dialogue("Q", "one\ntwo\n\nthree\n"),
            [
                (False, DEFAULT + USER + "Q" + END + "\n" + ASSISTANT),
                (True, "one\ntwo\n\nthree\n" + END),
                (False, "\n"),
            ],
            id="newlines in the answer, all learnt",
        ),
        pytest.param(
            dialogue("この画像の数字は何ですか?", "薔薇の数は三𠮷です。", "何?", "鬱"),
            [
                (False, DEFAULT + USER + "この画像の数字は何ですか?" + END + "\n" + ASSISTANT),
                (True, "薔薇の数は三𠮷です。" + END),
                (False, "\n" + USER + "何?" + END + "\n" + ASSISTANT),
                (True, "鬱" + END),
                (False, "\n"),
            ],
            id="Japanese, with characters of several tokens",
        ),
        pytest.param(
            dialogue("Say cat", "Say cat", "assistant", "user"),
            [
                (False, DEFAULT + USER + "Say cat" + END + "\n" + ASSISTANT),
                (True, "Say cat" + END),
                (False, "\n" + USER + "assistant" + END + "\n" + ASSISTANT),
                (True, "user" + END),
                (False, "\n"),
            ],
            id="answer repeats the question",
        ),
        pytest.param(
            dialogue("<image>\n<image>\nQ", "A", "<image>\nand this?", "B"),
            [
                (False, DEFAULT + USER + "<image>\n<image>\nQ" + END + "\n" + ASSISTANT),
                (True, "A" + END),
                (False, "\n" + USER + "<image>\nand this?" + END + "\n" + ASSISTANT),
                (True, "B" + END),
                (False, "\n"),
            ],
            id="images in later turns",
        ),
        pytest.param(
            dialogue("Q", "see <image>\n<image>\nhere"),
            [
                (False, DEFAULT + USER + "Q" + END + "\n" + ASSISTANT),
                (True, "see "),
                (False, "<image>\n<image>\n"),
                (True, "here" + END),
                (False, "\n"),
            ],
            id="an image in an answer is not learnt",
        ),
    ],
)
def test_learnt_text(turns, expected, tokenizer):
    assert stretches(turns, tokenizer) == expected


def test_labels_are_shifted_by_one():
    ids = np.array([10, 11, 12, 13])
    labels = shifted_labels(ids, np.array([True, False, True, True]))
    assert labels.tolist() == [-100, 12, 13, -100]


def test_labels_decode_to_the_answer(tokenizer):
    rendered = render(dialogue("Q", "It is 七."), tokenizer)
    labels = shifted_labels(*tokenize_conversation(rendered, tokenizer, TILE))
    assert tokenizer.decode(labels[labels >= 0]) == "It is 七.<|im_end|>"


def test_template_that_strips_content(tokenizer_with, tokenizer):
    stripping = tokenizer_with(tokenizer.chat_template.replace("m['content']", "m['content']|trim"))
    assert stretches(dialogue("Q", "  A  "), stripping) == [
        (False, DEFAULT + USER + "Q" + END + "\n" + ASSISTANT),
        (True, "A" + END),
        (False, "\n"),
    ]


def test_template_without_newline_after_the_turn(tokenizer_with):
    plain = tokenizer_with(
        "{% for m in messages %}{{ 'Q: ' + m['content'] + ' A:' if m['role'] == 'user' else ' ' +"
        " m['content'] + '<|endoftext|>' }}{% endfor %}"
    )
    assert stretches(dialogue("one", "two", "three", "four"), plain) == [
        (False, "Q: one A:"),
        (True, " two<|endoftext|>"),
        (False, "Q: three A:"),
        (True, " four<|endoftext|>"),
    ]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "has no chat template"),
        (
            "{% for m in messages %}{% if loop.last or m['role'] == 'user' %}{{ m['content'] }}"
            "<|im_end|>{% endif %}{% endfor %}",
            "must only append",
        ),
        (
            "{% for m in messages %}{{ m['content'] }}\n{% endfor %}",
            "close it with a special token",
        ),
        (
            "{% for m in messages %}{{ m['content'] if loop.last else m['content'][:-1] }}"
            "<|im_end|>{% endfor %}",
            "must only append",
        ),
        (
            "{% for m in messages %}{{ m['content'] }}{{ '<|im_end|>' if loop.last else"
            " '<|im_start|>' }}{% endfor %}",
            "with the same special token",
        ),
        ("{{ raise_exception('no dialogue') }}", "refuses the turns"),
        ("{{ messages[0]['role'] + 1 }}", "refuses the turns"),
        # No generation prompt at all, one with more text, and one that another turn changes.
        (
            "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
            "{% endfor %}",
            "not end where the answer begins",
        ),
        (CHATML_PROMPT.format("<think>"), "not end where the answer begins"),
        (CHATML_PROMPT.format("{{ '' if messages | length > 1 else ' ' }}"), "not end where"),
    ],
)
def test_templates_that_do_not_suit(template, message, tokenizer_with):
    with pytest.raises(ValueError, match=message):
        check_chat_template(tokenizer_with(template), nvila_message)


def test_template_whose_beginning_depends_on_later_turns(tokenizer_with):
    late = tokenizer_with(
        "{% set seen = namespace(it=false) %}{% for m in messages %}{% if 'cat' in m['content'] %}"
        "{% set seen.it = true %}{% endif %}{% endfor %}{% if not seen.it %}No cat.\n{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    assert stretches(dialogue("Q", "A", "R", "cat"), late) == [
        (False, USER + "Q" + END + "\n" + ASSISTANT),
        (True, "A" + END),
        (False, "\n" + USER + "R" + END + "\n" + ASSISTANT),
        (True, "cat" + END),
        (False, "\n"),
    ]
    assert stretches(dialogue("Q", "A"), late)[0] == (
        False,
        "No cat.\n" + USER + "Q" + END + "\n" + ASSISTANT,
    )


PARTS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for part in m['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text']TRIM }}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize(
    ("trim", "expected"),
    [
        (
            "",
            [
                (False, USER + " Q " + END + "\n" + ASSISTANT),
                (True, " see "),
                (False, "<image>"),
                (True, "here " + END),
                (False, "\n" + USER + "R" + END + "\n" + ASSISTANT + "<image>"),
                (True, END),
                (False, "\n"),
            ],
        ),
        (
            " | trim",
            [
                (False, USER + "Q" + END + "\n" + ASSISTANT),
                (True, "see"),
                (False, "<image>"),
                (True, "here" + END),
                (False, "\n" + USER + "R" + END + "\n" + ASSISTANT + "<image>"),
                (True, END),
                (False, "\n"),
            ],
        ),
    ],
)
def test_content_in_parts(trim, expected, tokenizer_with):
    tokenizer = tokenizer_with(PARTS.replace("TRIM", trim))
    turns = dialogue(" Q ", " see <image>here ", "R", "<image>")
    assert stretches(turns, tokenizer, chat_message, re.compile("<image>")) == expected


@pytest.mark.parametrize("marker", [START_MARKER, END_MARKER])
@pytest.mark.parametrize("turn", [0, 1])
def test_text_that_holds_a_marker(marker, turn, tokenizer):
    texts = ["Q", "A"]
    texts[turn] += marker
    with pytest.raises(BadSample, match=r"U\+10FFFC or U\+10FFFD") as caught:
        render(dialogue(*texts), tokenizer)
    assert caught.value.reason == Reason.MARKER_CHARACTER


@pytest.mark.parametrize(
    "change", [".split('#')[-1]", ".replace('x', '')", " if m['content'] != 'x' else ''"]
)
def test_answer_that_the_template_changes(change, tokenizer_with, tokenizer):
    content = f"(m['content']{change})"
    changing = tokenizer_with(tokenizer.chat_template.replace("m['content']", content))
    assert stretches(dialogue("Q", "A"), changing) == stretches(dialogue("Q", "A"), tokenizer)
    answer = {"s": "A#B", "r": "axb", "i": "x"}[change.strip(". ")[0]]
    with pytest.raises(BadSample, match="must only append") as caught:
        render(dialogue("Q", answer), changing)
    assert caught.value.reason == Reason.TEMPLATE_CHANGES


def test_template_that_refuses_some_turns(tokenizer_with, tokenizer):
    refusing = tokenizer_with(
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}"
        "{% endif %}" + tokenizer.chat_template
    )
    assert render(dialogue("Q", "A"), refusing).text == render(dialogue("Q", "A"), tokenizer).text
    with pytest.raises(BadSample, match="system, user, assistant: no system turn") as caught:
        render(dialogue("Q", "A", system="S"), refusing)
    assert caught.value.reason == Reason.TEMPLATE_REFUSES

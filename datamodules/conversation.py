"""From a conversation to tokens and the positions that are learnt.

What is learnt is found by characters: the conversation is rendered once as it is, and once with a
marker before and after every answer. An answer begins where the chat template ends when asked for
a generation prompt, and ends with the token that closes the turn. The whole text is tokenised once,
and a token is supervised when it starts inside such a span. Nothing is ever looked up among token
ids, so an answer that repeats the question, or a tokenizer that merges across a boundary, changes
nothing. Neither does a template whose beginning depends on turns that come later.

The published code of NVILA cuts the answers out of the template and matches the rest greedily.
When an answer holds a newline token of its own, that leaves the first such newline unlabelled and
labels the newline after the turn instead. This is a defect of the method, and not reproduced here.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jinja2
import numpy as np
from transformers import PreTrainedTokenizerBase

from models.conversation_templates import (
    TEMPLATE_NAMES,
    ConversationTemplate,
    conversation_template,
)
from sample_loaders.errors import BadSample, Reason

IGNORED = -100

# A message of a chat template: its role, and its content as a string or as a list of parts.
Message = dict[str, Any]

# A template that goes before the tokenizer's own, or its name.
GivenTemplate = ConversationTemplate | str | None

# The last two private-use characters of Unicode: no font and no text has a meaning for them.
START_MARKER, END_MARKER = "\U0010fffc", "\U0010fffd"
_MARKER = re.compile(f"[{START_MARKER}{END_MARKER}]")


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedConversation:
    """The text of a conversation and the character spans [start, end) that are learnt."""

    text: str
    spans: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatTemplate:
    """A tokenizer's chat template, proved by `check_chat_template`.

    Attributes:
        tokenizer: The tokenizer that has it.
        closing: Matches the special token that may close an answer, whitespace before it included.
        arguments: Passed to the template beside the messages.
        lead: What the template prints between its generation prompt and an answer, if anything.
            The model writes it, so it is learnt with the answer.
        system: Of conversations that have no system turn; None adds none.
        roles: The template's names of roles, where they differ.
    """

    tokenizer: PreTrainedTokenizerBase
    closing: re.Pattern[str]
    arguments: Mapping[str, str] = field(default_factory=dict)
    lead: str = ""
    system: str | None = None
    roles: Mapping[str, str] = field(default_factory=dict)

    def apply(self, messages: Sequence[Message], *, prompt: bool = False) -> str:
        """Renders messages as `text` does; what the template raises is not translated."""
        named = [
            {**message, "role": self.roles.get(message["role"], message["role"])}
            for message in messages
        ]
        if self.system is not None and messages[0]["role"] != "system":
            named.insert(0, {"role": "system", "content": self.system})
        return self.tokenizer.apply_chat_template(
            named, tokenize=False, add_generation_prompt=prompt, **self.arguments
        )

    def text(self, messages: Sequence[Message], *, prompt: bool = False) -> str:
        """Renders messages, with the generation prompt after them if wanted.

        Raises:
            BadSample: The template refuses these messages.
        """
        try:
            return self.apply(messages, prompt=prompt)
        # A template that joins strings to contents of another form ends in a TypeError.
        except (jinja2.TemplateError, TypeError) as error:
            roles = ", ".join(message["role"] for message in messages)
            raise BadSample(
                Reason.TEMPLATE_REFUSES, f"{self._name()} refuses the turns {roles}: {error}."
            ) from error

    def render(self, messages: Sequence[Message]) -> RenderedConversation:
        """Renders a conversation and finds the spans of the answers.

        A span holds the answer and the token that closes the turn, not the whitespace after it.

        Raises:
            BadSample: A text holds a marker, the template refuses the turns, or it does not print
                every answer once, whole, and closed by the same special token.
        """
        texts = [text for message in messages for text in _texts(message)]
        if any(_MARKER.search(text) for text in texts):
            raise BadSample(
                Reason.MARKER_CHARACTER,
                f"A text holds the character U+{ord(START_MARKER):X} or U+{ord(END_MARKER):X}, "
                f"which mark answers here.",
            )
        text = self.text(messages)
        # A template may trim what it prints; the markers must then stand inside of the trimmed.
        for form in (messages, [_stripped(message) for message in messages]):
            marked = self.text([_marked(message) for message in form])
            if _MARKER.sub("", marked) == text:
                answers = [message for message in form if message["role"] == "assistant"]
                return RenderedConversation(text=text, spans=self._spans(marked, answers))
        raise self._changes_answers()

    def _spans(self, marked: str, answers: Sequence[Message]) -> tuple[tuple[int, int], ...]:
        outside_and_inside = _MARKER.split(marked)
        if _MARKER.findall(marked) != [START_MARKER, END_MARKER] * len(answers):
            raise self._changes_answers()
        spans, closings, position = [], set(), 0
        for number, message in enumerate(answers):
            before, answer, after = outside_and_inside[2 * number : 2 * number + 3]
            if not (before.endswith(self.lead) and _pattern(message).fullmatch(answer)):
                raise self._changes_answers()
            closed = self.closing.match(after)
            if closed is None:
                raise BadSample(
                    Reason.TEMPLATE_CHANGES,
                    f"{self._name()} ends an answer with {(answer + after)[:20]!r}, but must "
                    f"close it with a special token.",
                )
            closings.add(closed.group())
            start = position + len(before)
            position = start + len(answer)
            spans.append((start - len(self.lead), position + closed.end()))
        if len(closings) > 1:
            raise BadSample(
                Reason.TEMPLATE_CHANGES,
                f"{self._name()} ends answers with {sorted(closings)}, but must close all of them "
                f"with the same special token.",
            )
        return tuple(spans)

    def _changes_answers(self) -> BadSample:
        return BadSample(
            Reason.TEMPLATE_CHANGES,
            f"{self._name()} changes or drops an answer among other turns, but must only append.",
        )

    def _name(self) -> str:
        return f"The chat template of {self.tokenizer.name_or_path!r}"


def unproved_template(
    tokenizer: PreTrainedTokenizerBase,
    arguments: Mapping[str, str] | None = None,
    given: GivenTemplate = None,
) -> ChatTemplate:
    """Takes the given template, else the tokenizer's: the order of precedence of NeVA.

    Args:
        tokenizer: Any tokenizer; it gets the given template.
        arguments: Passed to the template beside the messages.
        given: A template, its name, or None.

    Raises:
        ValueError: There is none, its name is unknown, or its stop string is no special token.
    """
    if isinstance(given, str):
        given = conversation_template(given, "conversation_template")
    special = _special_tokens(tokenizer)
    if given is not None:
        tokenizer.chat_template = given.chat_template
        if given.stop_string is not None:
            if given.stop_string not in special:
                raise ValueError(
                    f"conversation_template: the stop_string {given.stop_string!r} must be one of "
                    f"the special tokens of {tokenizer.name_or_path!r}: {', '.join(special)}."
                )
            special = [given.stop_string]
    if not tokenizer.chat_template:
        raise ValueError(
            f"The tokenizer {tokenizer.name_or_path!r} has no chat template, but one is needed; "
            f"conversation_template gives one ({', '.join(TEMPLATE_NAMES)})."
        )
    return ChatTemplate(
        tokenizer=tokenizer,
        closing=_closing(special),
        arguments=dict(arguments or {}),
        system=None if given is None else given.system,
        roles={} if given is None else given.role_names,
    )


def check_chat_template(
    tokenizer: PreTrainedTokenizerBase,
    make_message: Callable[[str, str], Message],
    questions: Sequence[str] = ("a",),
    arguments: Mapping[str, str] | None = None,
    given: GivenTemplate = None,
) -> ChatTemplate:
    """Proves on short dialogues that a chat template can give spans.

    The generation prompt must end exactly where an answer begins: nothing but whitespace, always
    the same, may be printed between them. A given template may have no generation prompt, as
    NeVA's have none: it is then taken to end before the spaces in front of an answer.

    Args:
        tokenizer: Any tokenizer.
        make_message: Makes the family's message of a role and a text.
        questions: A dialogue is tried with each of these as its first question.
        arguments: Passed to the template beside the messages.
        given: Goes before the tokenizer's own: a template, its name, or None.

    Raises:
        ValueError: There is no template, or it does not suit.
    """
    template = unproved_template(tokenizer, arguments, given)
    has_prompt = given is None or "add_generation_prompt" in str(tokenizer.chat_template)
    leads: set[str | None] = set()
    for question in questions:
        # No system turn: some templates refuse one, which matters only to samples that have one.
        turns = [("user", question), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
        messages = [make_message(role, text) for role, text in turns]
        try:
            rendered = template.render(messages)
            prompts = [template.text(messages[:end], prompt=True) for end in (1, 3)]
        except BadSample as error:
            raise ValueError(error.message) from error
        for prompt, (start, _) in zip(prompts, rendered.spans, strict=True):
            before = rendered.text[:start]
            if not has_prompt:
                # Spaces are part of the word behind them in many vocabularies.
                prompt = before.rstrip(" ")
            leads.add(before.removeprefix(prompt) if before.startswith(prompt) else None)
    lead = leads.pop()
    if leads or lead is None or lead.strip():
        raise ValueError(
            f"The chat template of {tokenizer.name_or_path!r} has a generation prompt that does "
            f"not end where the answer begins, but only whitespace may stand between them."
        )
    return replace(template, lead=lead)


def tokenize_conversation(
    rendered: RenderedConversation,
    tokenizer: PreTrainedTokenizerBase,
    image_text: re.Pattern[str],
) -> tuple[np.ndarray, np.ndarray]:
    """Tokenises a rendered conversation in one call.

    Args:
        rendered: The text and its spans.
        tokenizer: A fast tokenizer; it adds nothing, because the template holds all of the text.
        image_text: Matches what stands for images, which is not learnt in an answer either.

    Returns:
        Token ids int64 [length] and whether each is learnt, bool [length].
    """
    encoding = tokenizer(
        rendered.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    learnt = np.zeros(len(rendered.text) + 1, dtype=bool)
    for start, end in rendered.spans:
        learnt[start:end] = True
    for image in image_text.finditer(rendered.text):
        learnt[image.start() : image.end()] = False
    ids = np.asarray(encoding["input_ids"], dtype=np.int64)
    starts = np.asarray(encoding["offset_mapping"], dtype=np.int64).reshape(-1, 2)[:, 0]
    return ids, learnt[starts]


def shifted_labels(ids: np.ndarray, supervised: np.ndarray) -> np.ndarray:
    """Moves the targets to where they are predicted.

    Args:
        ids: Token ids int64 [length].
        supervised: Whether each token is learnt, bool [length].

    Returns:
        int64 [length]: at t the token wanted after position t, or -100. Nothing predicts the first
        token, and the last position predicts nothing.
    """
    labels = np.full(len(ids), IGNORED, dtype=np.int64)
    labels[:-1] = np.where(supervised[1:], ids[1:], IGNORED)
    return labels


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    return [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]


def _closing(special: Sequence[str]) -> re.Pattern[str]:
    # Longest first, so that a token is not taken for another one that it begins with.
    names = "|".join(re.escape(name) for name in sorted(special, key=len, reverse=True))
    # Without any special token nothing closes an answer.
    return re.compile(rf"\s*(?:{names})" if names else r"(?!)")


def _parts(message: Message) -> list[dict[str, str]]:
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _texts(message: Message) -> list[str]:
    return [part["text"] for part in _parts(message) if part["type"] == "text"]


def _pattern(message: Message) -> re.Pattern[str]:
    """Matches what a template may print for an answer: its texts, and anything for an image."""
    texts = [
        re.escape(part["text"]) if part["type"] == "text" else ".*?" for part in _parts(message)
    ]
    return re.compile("".join(texts), re.DOTALL)


def _stripped(message: Message) -> Message:
    """Strips the texts of an answer, as templates do that trim."""
    if message["role"] != "assistant":
        return message
    content = message["content"]
    if isinstance(content, str):
        return {**message, "content": content.strip()}
    parts = [
        {**part, "text": part["text"].strip()} if part["type"] == "text" else part
        for part in content
    ]
    return {**message, "content": parts}


def _marked(message: Message) -> Message:
    """Puts the markers around an answer, into its first and last text where it has them there."""
    if message["role"] != "assistant":
        return message
    content = message["content"]
    if isinstance(content, str):
        return {**message, "content": f"{START_MARKER}{content}{END_MARKER}"}
    parts = list(content)
    if not parts or parts[0]["type"] != "text":
        parts.insert(0, {"type": "text", "text": ""})
    parts[0] = {**parts[0], "text": START_MARKER + parts[0]["text"]}
    if parts[-1]["type"] != "text":
        parts.append({"type": "text", "text": ""})
    parts[-1] = {**parts[-1], "text": parts[-1]["text"] + END_MARKER}
    return {**message, "content": parts}

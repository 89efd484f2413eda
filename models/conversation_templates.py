"""Conversation templates by name: what a directory's own chat template may be replaced with.

Standard library only. A template has the form of Hugging Face's chat templates (Jinja2) and prints
all of the text, the token that begins it included. Messages have a text as content, or a list of
parts (`{"type": "image"}`, `{"type": "text", "text": ...}`); images come first in their turn, each
on a line of its own, wherever the question has them: so LLaVA was trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

PLAIN = "plain"
"""Images, the answer and a newline: LLaVA's first stage. It has no form to ask a question in."""


@dataclass(frozen=True, kw_only=True)
class ConversationTemplate:
    """How a conversation becomes text; the fields are those of NeVA's template configuration.

    Attributes:
        chat_template: Jinja2 over `messages`, `bos_token`, `eos_token` and, where the template is
            to be asked with, `add_generation_prompt`.
        system: of conversations that have no system turn; None leaves that to `chat_template`.
        roles: what `message['role']` is for the user and for the assistant.
        stop_string: the special token that closes an answer; None accepts any.
    """

    chat_template: str
    system: str | None = None
    roles: tuple[str, str] = ("user", "assistant")
    stop_string: str | None = None

    @property
    def role_names(self) -> Mapping[str, str]:
        """The template's names of the roles."""
        return {"user": self.roles[0], "assistant": self.roles[1]}


@dataclass(frozen=True, kw_only=True)
class _Dialogue:
    """A dialogue of marked turns: `<s>system USER: question ASSISTANT: answer</s>USER: ...`."""

    system: str
    user: str = "USER"
    assistant: str = "ASSISTANT"
    begin: str = "bos_token"
    before_image: str = "''"

    def template(self) -> ConversationTemplate:
        return ConversationTemplate(
            chat_template=_DIALOGUE.replace("@SYSTEM@", self.system)
            .replace("@USER@", self.user)
            .replace("@ASSISTANT@", self.assistant)
            .replace("@BEGIN@", self.begin)
            .replace("@BEFORE_IMAGE@", self.before_image)
        )


_DIALOGUE = """\
{%- macro text(message) -%}
{%- if message['content'] is string -%}{{ message['content'] | trim }}
{%- else -%}
{%- for part in message['content'] if part['type'] == 'image' -%}
{{ @BEFORE_IMAGE@ + '<image>\\n' }}
{%- endfor -%}
{%- for part in message['content'] if part['type'] == 'text' -%}
{{ part['text'] | trim }}{{ '' if loop.last else ' ' }}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{{ @BEGIN@ }}
{%- if messages[0]['role'] == 'system' -%}{{ text(messages[0]) + ' ' }}
{%- else -%}{{ '@SYSTEM@ ' }}{%- endif -%}
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}{{ '@USER@: ' + text(message) + ' ' }}
{%- elif message['role'] == 'assistant' -%}{{ '@ASSISTANT@: ' + text(message) + eos_token }}
{%- elif not loop.first -%}{{ raise_exception('A system turn must be the first.') }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '@ASSISTANT@:' }}{%- endif -%}
"""

_LLAVA_JP = _Dialogue(
    system="これは好奇心旺盛なユーザーと人工知能システムのチャットです。"
    "システムはユーザーの質問に親切、詳細、丁寧に答える。",
    user="ユーザー",
    assistant="システム",
    begin="''",
)

CONVERSATION_TEMPLATES: Mapping[str, ConversationTemplate] = {
    # Vicuna's, with which LLaVA-1.5 was trained.
    "v1": _Dialogue(
        system="A chat between a curious user and an artificial intelligence assistant. The "
        "assistant gives helpful, detailed, and polite answers to the user\\'s questions."
    ).template(),
    "llava_jp": _LLAVA_JP.template(),
    # Its published models were trained with an end token before every image, as their tokenizer
    # appends one to each piece of text.
    "llava_jp_published": replace(_LLAVA_JP, before_image="eos_token").template(),
}

TEMPLATE_NAMES = (*CONVERSATION_TEMPLATES, PLAIN)


def conversation_template(name: str, argument: str) -> ConversationTemplate:
    """Return the template of a name (any but `plain`).

    Raises:
        ValueError: there is none.
    """
    if name not in CONVERSATION_TEMPLATES:
        raise ValueError(
            f"{argument}: {name!r} is unknown; allowed are {', '.join(CONVERSATION_TEMPLATES)}."
        )
    return CONVERSATION_TEMPLATES[name]

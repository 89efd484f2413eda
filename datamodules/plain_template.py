"""The text of LLaVA's first stage: images, answer and a newline; the question is left out."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from datamodules.conversation import Message, RenderedConversation
from sample_loaders.errors import BadSample, Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainTemplate:
    """Renders one question with its answer, behind the token that begins a text.

    All of the answer is learnt, and the newline behind it, which ends a caption as published.

    Attributes:
        tokenizer: Has the token for the beginning, or none.
        image_text: Matches what stands for an image in the content of a message.
    """

    tokenizer: PreTrainedTokenizerBase
    image_text: re.Pattern[str]

    def render(self, messages: Sequence[Message]) -> RenderedConversation:
        """Renders a conversation and finds the span of its answer.

        Args:
            messages: Their contents are strings.

        Raises:
            BadSample: There is more than one question, or an image in the answer.
        """
        *before, question, answer = messages
        if any(message["role"] != "system" for message in before):
            raise BadSample(
                Reason.TEMPLATE_REFUSES, "The plain template takes one question and its answer."
            )
        if self.image_text.search(answer["content"]):
            raise BadSample(
                Reason.TEMPLATE_REFUSES, "The plain template takes no image in an answer."
            )
        images = "".join(match.group() for match in self.image_text.finditer(question["content"]))
        lead = (self.tokenizer.bos_token or "") + images
        text = f"{lead}{answer['content'].strip()}\n"
        return RenderedConversation(text=text, spans=((len(lead), len(text)),))

"""Why a sample cannot be used, in words for people and in names for programs."""

from enum import StrEnum


class Reason(StrEnum):
    """Machine-readable names of everything that makes a sample unusable."""

    INVALID_JSON = "invalid_json"
    MISSING_KEY = "missing_key"
    WRONG_TYPE = "wrong_type"
    UNKNOWN_ROLE = "unknown_role"
    EMPTY_CONVERSATION = "empty_conversation"
    NOT_FROM_HUMAN = "not_from_human"
    NOT_ALTERNATING = "not_alternating"
    NO_FINAL_ANSWER = "no_final_answer"
    EMPTY_ANSWER = "empty_answer"
    EQUAL_ANSWERS = "equal_answers"
    EMPTY_DOCUMENT = "empty_document"
    IMAGE_COUNT = "image_count"
    CONTROL_TOKEN = "control_token"
    MARKER_CHARACTER = "marker_character"
    TEMPLATE_REFUSES = "template_refuses"
    TEMPLATE_CHANGES = "template_changes"
    MISSING_IMAGE = "missing_image"
    UNREADABLE_IMAGE = "unreadable_image"
    TOO_MANY_PIXELS = "too_many_pixels"
    HUNG_READ = "hung_read"
    TOO_LONG = "too_long"
    NO_SUPERVISED_TOKEN = "no_supervised_token"


class BadSample(Exception):  # noqa: N818 - it is about a sample, not about the program
    """A sample that cannot be used; it is skipped, counted and listed, never trained on.

    Args:
        reason: A name from `Reason`, the key that skips are counted under.
        message: One sentence for a person, naming the file or the value at fault.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)
        self.reason = str(reason)
        self.message = message

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"

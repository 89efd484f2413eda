"""Why a sample is left out of the shards, in names for programs."""

from enum import StrEnum


class RejectionReason(StrEnum):
    """Machine-readable names of everything that keeps a sample out."""

    EXCLUDED = "excluded"
    INVALID_RECORD = "invalid_record"
    MISSING_IMAGE = "missing_image"
    UNREADABLE_IMAGE = "unreadable_image"
    ANIMATED_IMAGE = "animated_image"
    IMAGE_TOO_SMALL = "image_too_small"
    IMAGE_TOO_LARGE = "image_too_large"
    DECOMPRESSION_BOMB = "decompression_bomb"
    TEXT_TOO_LONG = "text_too_long"
    EMPTY_TEXT = "empty_text"
    OTHER_LANGUAGE = "other_language"
    LOW_SIMILARITY = "low_similarity"
    TOO_MANY_IMAGES = "too_many_images"
    DUPLICATE = "duplicate"
    NEAR_DUPLICATE = "near_duplicate"
    UNSAFE_MEMBER = "unsafe_member"
    UNSAFE_PICKLE = "unsafe_pickle"
    DAMAGED_FILE = "damaged_file"
    UNPLACED_IMAGE = "unplaced_image"

"""Processor of NVILA-Lite: text and images to the tensors that the model reads."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from transformers import BatchFeature, ProcessorMixin
from transformers.image_utils import load_image

from .prompt_nvila_lite import IMAGE_TOKEN, expand_images, expand_tile_tokens, tokens_per_tile
from .tiling_nvila_lite import cut_tiles

Images = Image.Image | Sequence[Image.Image] | Sequence[Sequence[Image.Image]]
Message = dict[str, Any]


class NVILALiteProcessor(ProcessorMixin):
    """Tiles and normalises images, expands their placeholders and tokenises text.

    Every image is tiled, also when a prompt has several: that is how the model is trained. The
    published inference code cuts tiles only for a prompt with exactly one image; pass
    ``max_tiles=1`` for its behaviour with several.

    Args:
        image_processor: Holds the tile size, mean and standard deviation.
        tokenizer: A tokenizer with ``<image>`` and a single token for a newline.
        chat_template: Jinja template; the tokenizer's own when not given.
        max_tiles: Largest number of tiles of one image, the thumbnail not counted.
        patch_size: Side of a vision patch in pixels.
        downsample: Patches that the projector merges along each axis.

    Raises:
        ValueError: If the tokenizer lacks ``<image>`` or a single token for a newline.
    """

    attributes = ["image_processor", "tokenizer"]
    image_processor_class = "SiglipImageProcessor"
    tokenizer_class = "AutoTokenizer"

    def __init__(
        self,
        image_processor: Any,
        tokenizer: Any,
        chat_template: str | None = None,
        max_tiles: int = 12,
        patch_size: int = 14,
        downsample: int = 3,
    ) -> None:
        super().__init__(
            image_processor, tokenizer, chat_template=chat_template or tokenizer.chat_template
        )
        self.max_tiles = max_tiles
        self.patch_size = patch_size
        self.downsample = downsample
        self.tile_size = int(image_processor.size["height"])
        self.tokens_per_tile = tokens_per_tile(self.tile_size, patch_size, downsample)
        self.image_token = IMAGE_TOKEN
        self.image_token_id = _single_token(tokenizer, IMAGE_TOKEN)
        self.newline_token_id = _single_token(tokenizer, "\n")

    def __call__(
        self,
        text: str | Sequence[str],
        images: Images | None = None,
        max_tiles: int | None = None,
        padding: bool = True,
        return_tensors: str | None = "pt",
    ) -> BatchFeature:
        """Makes the inputs of the model.

        Args:
            text: One text or several, with one ``<image>`` per image.
            images: The images of all texts in order, or one list of images for each text.
            max_tiles: Largest number of tiles of one image; the processor's own when not given.
            padding: Whether to pad on the left to the longest text.
            return_tensors: ``pt``, ``np``, or None for numpy arrays.

        Returns:
            input_ids and attention_mask int64 [batch, length] and, when there are images,
            pixel_values float32 [tiles, 3, tile_size, tile_size], the tiles of the batch in order.

        Raises:
            ValueError: If placeholders and images do not match in number, or the texts have
                unequal lengths without padding.
        """
        texts = [text] if isinstance(text, str) else list(text)
        tile_limit = self.max_tiles if max_tiles is None else max_tiles
        tiles: list[np.ndarray] = []
        sequences = []
        for one_text, its_images in zip(texts, _images_per_text(texts, images), strict=True):
            its_tiles = [cut_tiles(image, self.tile_size, tile_limit) for image in its_images]
            expanded = expand_images(one_text, [len(cut) for cut in its_tiles])
            ids = self.tokenizer(expanded, add_special_tokens=False)["input_ids"]
            sequences.append(self._expand_tiles(ids))
            tiles += its_tiles
        data = self._pad(sequences, padding)
        if tiles:
            data["pixel_values"] = self._normalise(np.concatenate(tiles))
        return BatchFeature(data, tensor_type=return_tensors)

    def apply_chat_template(
        self,
        conversation: Sequence[Message] | Sequence[Sequence[Message]],
        chat_template: str | None = None,
        *,
        add_generation_prompt: bool = False,
        tokenize: bool = False,
        return_dict: bool = False,
        return_tensors: str | None = "pt",
        images: Images | None = None,
        max_tiles: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Renders conversations, and makes the inputs of the model when ``tokenize`` is set.

        The content of a message is a string, with ``<image>`` where an image stands, or a list of
        ``{"type": "text", "text": ...}`` and ``{"type": "image", "image": ...}``; an image is a PIL
        image, a path or an address (also under the keys ``path``, ``url`` and ``base64``).

        Args:
            conversation: One conversation or several.
            chat_template: Jinja template; the processor's own when not given.
            add_generation_prompt: Whether to open the answer of the assistant.
            tokenize: Whether to make the inputs of the model instead of text.
            return_dict: With ``tokenize``: whether to return all inputs and not only ``input_ids``.
            return_tensors: As in ``__call__``.
            images: The images, when the messages do not hold them.
            max_tiles: As in ``__call__``.
            **kwargs: Passed to the template.

        Raises:
            ValueError: If there is no chat template, a content item has another type, or images
                are given twice.
        """
        is_batch = not isinstance(conversation[0], dict)
        conversations = conversation if is_batch else [conversation]
        texts, found = [], []
        for messages in conversations:
            flat_messages, its_images = _flatten(messages)  # type: ignore[arg-type]
            text = self.tokenizer.apply_chat_template(
                flat_messages,
                chat_template=chat_template or self.chat_template,
                add_generation_prompt=add_generation_prompt,
                tokenize=False,
                **kwargs,
            )
            texts.append(text)
            found.append(its_images)
        if not tokenize:
            return texts if is_batch else texts[0]
        if images is not None and any(found):
            raise ValueError("images must be given in the messages or as images, not in both")
        inputs = self(
            texts,
            found if images is None else images,
            max_tiles=max_tiles,
            return_tensors=return_tensors,
        )
        return inputs if return_dict else inputs["input_ids"]

    def batch_decode(self, *args: Any, **kwargs: Any) -> list[str]:
        """Decodes sequences with the tokenizer."""
        return self.tokenizer.batch_decode(*args, **kwargs)

    def decode(self, *args: Any, **kwargs: Any) -> str:
        """Decodes one sequence with the tokenizer."""
        return self.tokenizer.decode(*args, **kwargs)

    @property
    def model_input_names(self) -> list[str]:
        """Names of the inputs of the model."""
        return ["input_ids", "attention_mask", "pixel_values"]

    def _expand_tiles(self, ids: Sequence[int]) -> np.ndarray:
        expanded, _ = expand_tile_tokens(
            ids, self.image_token_id, self.newline_token_id, self.tokens_per_tile
        )
        return expanded

    def _pad(self, sequences: Sequence[np.ndarray], padding: bool) -> dict[str, np.ndarray]:
        lengths = [len(sequence) for sequence in sequences]
        if not padding and len(set(lengths)) > 1:
            raise ValueError(f"padding=False is not allowed for texts of {lengths} tokens")
        shape = (len(sequences), max(lengths))
        input_ids = np.full(shape, self.tokenizer.pad_token_id, dtype=np.int64)
        attention_mask = np.zeros(shape, dtype=np.int64)
        for row, sequence in enumerate(sequences):
            start = shape[1] - len(sequence)
            input_ids[row, start:] = sequence
            attention_mask[row, start:] = 1
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    def _normalise(self, tiles: np.ndarray) -> np.ndarray:
        mean = np.asarray(self.image_processor.image_mean, dtype=np.float32)[:, None, None]
        deviation = np.asarray(self.image_processor.image_std, dtype=np.float32)[:, None, None]
        return (tiles.astype(np.float32) / 255 - mean) / deviation


def _single_token(tokenizer: Any, text: str) -> int:
    ids = tokenizer.encode(text, add_special_tokens=False)
    if len(ids) != 1:
        raise ValueError(f"the tokenizer splits {text!r} into {len(ids)} tokens: it must be one")
    return int(ids[0])


def _images_per_text(texts: Sequence[str], images: Images | None) -> list[list[Image.Image]]:
    """Assigns the images to the texts; a flat list is dealt out by the placeholders."""
    if images is None:
        return [[] for _ in texts]
    if isinstance(images, Image.Image):
        images = [images]
    if not all(isinstance(image, Image.Image) for image in images):
        nested = [
            [item] if isinstance(item, Image.Image) else list(item or ())  # type: ignore[call-overload]
            for item in images
        ]
        if len(nested) != len(texts):
            raise ValueError(f"images has {len(nested)} lists for {len(texts)} texts: one for each")
        return nested
    flat: list[Any] = list(images)
    counts = [text.count(IMAGE_TOKEN) for text in texts]
    if sum(counts) != len(flat):
        raise ValueError(
            f"the text has {sum(counts)} {IMAGE_TOKEN} placeholders for {len(flat)} images: "
            "there must be exactly one placeholder for every image"
        )
    ends = np.cumsum(counts).tolist()
    return [flat[end - count : end] for end, count in zip(ends, counts, strict=True)]


def _flatten(messages: Sequence[Message]) -> tuple[list[Message], list[Image.Image]]:
    """Turns content lists into strings with placeholders, and collects the images they hold."""
    flat_messages: list[Message] = []
    images = []
    for message in messages:
        content = message["content"]
        if not isinstance(content, str):
            parts = []
            for item in content:
                if item.get("type") == "text":
                    parts.append(item["text"])
                elif item.get("type") == "image":
                    parts.append(IMAGE_TOKEN)
                    sources = [
                        item[key] for key in ("image", "path", "url", "base64") if key in item
                    ]
                    images += [load_image(source) for source in sources[:1]]
                else:
                    raise ValueError(
                        f"a content item of type {item.get('type')!r} is not supported: "
                        "allowed are 'text' and 'image'"
                    )
            content = "".join(parts)
        flat_messages.append({**message, "content": content})
    return flat_messages, images

"""Everything of an exported Hugging Face directory but the weights."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedTokenizerBase, SiglipImageProcessor

import models.hf_code as hf_code
from models.hf_code.configuration_nvila_lite import NVILALiteConfig
from models.hf_code.processing_nvila_lite import NVILALiteProcessor
from models.hf_code.tiling_nvila_lite import PIXEL_MEAN, PIXEL_STD

CODE_FILES = (
    "configuration_nvila_lite.py",
    "modeling_nvila_lite.py",
    "processing_nvila_lite.py",
    "projector_nvila_lite.py",
    "prompt_nvila_lite.py",
    "tiling_nvila_lite.py",
)
_MODEL_CLASS = "NVILALiteForConditionalGeneration"
AUTO_MAP = {
    "AutoConfig": "configuration_nvila_lite.NVILALiteConfig",
    "AutoModel": f"modeling_nvila_lite.{_MODEL_CLASS}",
    "AutoModelForCausalLM": f"modeling_nvila_lite.{_MODEL_CLASS}",
    "AutoModelForImageTextToText": f"modeling_nvila_lite.{_MODEL_CLASS}",
}
PROCESSOR_AUTO_MAP = {"AutoProcessor": "processing_nvila_lite.NVILALiteProcessor"}
_BICUBIC = 3


def check_directory_name(directory: Path) -> None:
    """Refuses a name under which transformers could not import the code.

    Raises:
        ValueError: If the last part of the path has a dot, which reads as a package boundary.
    """
    if "." in directory.name:
        raise ValueError(
            f"the directory name {directory.name!r} is not allowed: transformers cannot import "
            "code from a directory with a dot in its name"
        )


def write_code(directory: Path, files: Sequence[str] = CODE_FILES) -> None:
    """Copies code of `models.hf_code` into an exported directory."""
    source = Path(hf_code.__path__[0])
    for name in files:
        shutil.copyfile(source / name, directory / name)


def write_assets(
    directory: Path,
    config: NVILALiteConfig,
    tokenizer: PreTrainedTokenizerBase,
    image_processor: SiglipImageProcessor | None = None,
) -> None:
    """Writes the configuration, tokenizer and processor files of an exported directory.

    The chat template is written to ``chat_template.jinja`` and into ``tokenizer_config.json``:
    readers differ in where they look.

    Args:
        directory: An existing directory.
        config: The configuration of the model.
        tokenizer: A tokenizer with a chat template, ``<image>``, and an end and a padding token.
        image_processor: Checked and written; made from the configuration when not given.

    Raises:
        ValueError: If the tokenizer or the image processor does not fit the configuration.
    """
    _check_tokenizer(config, tokenizer)
    expected = make_image_processor(config)
    if image_processor is not None:
        _check_image_processor(image_processor, expected)
    processor = NVILALiteProcessor(
        expected,
        tokenizer,
        max_tiles=config.max_tiles,
        patch_size=config.vision_config.patch_size,
        downsample=config.downsample,
    )
    processor.save_pretrained(directory)
    _update_json(directory / "processor_config.json", auto_map=PROCESSOR_AUTO_MAP)
    _update_json(directory / "tokenizer_config.json", chat_template=tokenizer.chat_template)
    _write_json(directory / "config.json", config_dictionary(config))
    GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        # A placeholder in an answer has no image: the model must not be able to write one.
        suppress_tokens=[config.image_token_id],
    ).save_pretrained(directory)


def make_image_processor(config: NVILALiteConfig) -> SiglipImageProcessor:
    """Makes the image processor that belongs to a configuration."""
    return SiglipImageProcessor(
        size={"height": config.tile_size, "width": config.tile_size},
        resample=_BICUBIC,
        image_mean=[PIXEL_MEAN] * 3,
        image_std=[PIXEL_STD] * 3,
    )


def config_dictionary(config: NVILALiteConfig) -> dict[str, Any]:
    """Serialises a configuration for an exported directory, with the names of its code."""
    return config.to_diff_dict() | {"architectures": [_MODEL_CLASS], "auto_map": AUTO_MAP}


def _check_tokenizer(config: NVILALiteConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    if not tokenizer.chat_template:
        raise ValueError("the tokenizer has no chat template: one is needed to build prompts")
    for name in ("eos_token_id", "pad_token_id"):
        if getattr(tokenizer, name) is None:
            raise ValueError(f"the tokenizer has no {name}: one is needed to generate in batches")
    if len(tokenizer) > config.text_config.vocab_size:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens for a vocabulary of "
            f"{config.text_config.vocab_size}: at most as many are allowed"
        )
    for name, text in (("image_token_id", "<image>"), ("newline_token_id", "\n")):
        ids = tokenizer.encode(text, add_special_tokens=False)
        if ids != [getattr(config, name)]:
            raise ValueError(
                f"{name}={getattr(config, name)} of the configuration must be the tokenizer's only "
                f"id of {text!r}, which is {ids}"
            )


def _check_image_processor(actual: SiglipImageProcessor, expected: SiglipImageProcessor) -> None:
    for name in ("size", "image_mean", "image_std", "resample"):
        if getattr(actual, name) != getattr(expected, name):
            raise ValueError(
                f"{name}={getattr(actual, name)} of the image processor is not supported: "
                f"the model needs {getattr(expected, name)}"
            )


def _update_json(path: Path, **values: Any) -> None:
    _write_json(path, json.loads(path.read_text(encoding="utf-8")) | values)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")

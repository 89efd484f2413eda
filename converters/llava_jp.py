"""The published layout of LLaVA-JP: one GPT-2 with a vision tower and a projector hung into it.

Its config.json is a GPT-2's, with `mm_*` keys and without the tower's sizes; tensors are named
`transformer.*`, `lm_head.weight` (stored although it is the embedding),
`model.vision_tower.vision_tower.vision_model.*` and `model.mm_projector.{0,2}.*`. In transformers
the same model is a Llava with a GPT-2 in it, which is what checkpoints and exports have.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from transformers import (
    CLIPVisionConfig,
    GPT2Config,
    LlavaConfig,
    PretrainedConfig,
    SiglipVisionConfig,
)

from converters.neva_directory import llava_config
from converters.rows import ConversionError
from models.hf_code.image_scales import SCALES
from models.llava.description import LLAVA_PROJECTOR, feature_width, image_scales

MODEL_TYPE = "llava-jp"
TensorType = TypeVar("TensorType")

_PREFIXES = {
    "transformer.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
    "model.vision_tower.vision_tower.": "vision_tower.",
    "model.mm_projector.0.": "multi_modal_projector.linear_1.",
    "model.mm_projector.2.": "multi_modal_projector.linear_2.",
}
_TOWERS: Mapping[str, PretrainedConfig] = {
    "openai/clip-vit-large-patch14-336": CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
        projection_dim=768,
    ),
    "google/siglip-so400m-patch14-384": SiglipVisionConfig(
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=27,
        num_attention_heads=16,
        image_size=384,
        patch_size=14,
    ),
}
"""The towers of the published models; their config.json says no more than the name."""

_TWO_SCALES = list(SCALES[1])
"""Of v1.1; older files name none."""

_STRATEGIES = {"patch": "default", "cls_patch": "full"}


def llava_names(tensors: Mapping[str, TensorType]) -> dict[str, TensorType]:
    """Return tensors of the published layout under the names of a Llava in transformers.

    Raises:
        ConversionError: a name is of neither part.
    """
    renamed = {_renamed(name, _PREFIXES): tensor for name, tensor in tensors.items()}
    unknown = [name for name in tensors if _renamed(name, _PREFIXES) == name]
    if unknown:
        raise ConversionError(f"No tensors of a LLaVA-JP: {', '.join(sorted(unknown)[:12])}.")
    return renamed


def llava_jp_names(tensors: Mapping[str, TensorType]) -> dict[str, TensorType]:
    """Return tensors of a Llava under their published names; a tied output layer comes again."""
    back = {own: published for published, own in _PREFIXES.items()}
    renamed = {_renamed(name, back): tensor for name, tensor in tensors.items()}
    renamed.setdefault("lm_head.weight", renamed["transformer.wte.weight"])
    return renamed


def read_llava_jp_config(content: Mapping[str, Any], image_token_index: int) -> LlavaConfig:
    """Translate a published config.json.

    Args:
        content: of the file.
        image_token_index: id that stands for an image; the published code has none.

    Raises:
        ValueError: it asks for something that is not supported.
    """
    refused = {
        "scales": content.get("scales") not in (None, [1.0], _TWO_SCALES),
        "mm_projector_type": content.get("mm_projector_type") != LLAVA_PROJECTOR,
        "mm_vision_select_feature": content.get("mm_vision_select_feature") not in _STRATEGIES,
    }
    for name, is_refused in refused.items():
        if is_refused:
            raise ValueError(
                f"{name}: {content.get(name)!r} of this LLaVA-JP is not supported; one scale "
                f"or {_TWO_SCALES}, {LLAVA_PROJECTOR} and patch or cls_patch are."
            )
    vision, scales = _vision_config(content), content.get("scales") or SCALES[0]
    _refuse_clip_at_two_scales(vision, scales)
    text = GPT2Config.from_dict(
        {name: value for name, value in content.items() if not _is_multimodal(name)}
        | {"model_type": "gpt2", "architectures": None}
    )
    config = llava_config(
        LLAVA_PROJECTOR,
        scales,
        vision_config=vision,
        text_config=text,
        image_token_index=image_token_index,
        vision_feature_layer=content.get("mm_vision_select_layer", -2),
        vision_feature_select_strategy=_STRATEGIES[content["mm_vision_select_feature"]],
        tie_word_embeddings=text.tie_word_embeddings,
        torch_dtype=content.get("torch_dtype"),
    )
    config.mm_vision_tower = content.get("mm_vision_tower")
    return config


def llava_jp_config(config: LlavaConfig) -> dict[str, Any]:
    """Return the published config.json of a model (the inverse of `read_llava_jp_config`).

    The tower's sizes are added under `vision_config`, which the published code does not read: it
    loads the tower that it finds under its name.

    Raises:
        ValueError: the published code cannot compute it.
    """
    vision, scales = config.vision_config, image_scales(config)
    _refuse_clip_at_two_scales(vision, scales)
    features = {strategy: feature for feature, strategy in _STRATEGIES.items()}
    text = config.text_config.to_dict() | {
        "tie_word_embeddings": config.text_config.tie_word_embeddings
    }
    return text | {
        "architectures": ["LlavaGpt2ForCausalLM"],
        "model_type": MODEL_TYPE,
        "image_aspect_ratio": "square",
        "mm_hidden_size": feature_width(config),
        "mm_projector_type": LLAVA_PROJECTOR,
        "mm_vision_select_feature": features[config.vision_feature_select_strategy],
        "mm_vision_select_layer": config.vision_feature_layer,
        "mm_vision_tower": getattr(config, "mm_vision_tower", None) or _tower_name(vision),
        "scales": list(scales) if len(scales) > 1 else None,
        "use_mm_proj": True,
        "vision_config": vision.to_dict(),
    }


def _refuse_clip_at_two_scales(vision: PretrainedConfig, scales: Sequence[float]) -> None:
    if vision.model_type == "clip_vision_model" and len(scales) > 1:
        raise ValueError(
            f"scales: {_TWO_SCALES} do not go with CLIP in the published layout of LLaVA-JP, whose "
            "code asks its image processor for a height; SigLIP has one."
        )


def _vision_config(content: Mapping[str, Any]) -> PretrainedConfig:
    own = content.get("vision_config")
    if own is not None:
        classes = {one.model_type: one for one in (CLIPVisionConfig, SiglipVisionConfig)}
        if own.get("model_type") not in classes:
            raise ValueError(
                f"vision_config: {own.get('model_type')!r} is not supported; "
                f"{' and '.join(classes)} are."
            )
        return classes[own["model_type"]].from_dict(own)
    name = str(content.get("mm_vision_tower"))
    if name not in _TOWERS:
        raise ValueError(
            f"mm_vision_tower: {name!r} is not known; {' and '.join(_TOWERS)} are. Put the tower's "
            "own config.json under vision_config."
        )
    return _TOWERS[name].__class__.from_dict(_TOWERS[name].to_dict())


def _tower_name(vision: PretrainedConfig) -> str:
    sizes = ("hidden_size", "num_hidden_layers", "image_size", "patch_size")
    for name, known in _TOWERS.items():
        if known.model_type == vision.model_type and all(
            getattr(known, size) == getattr(vision, size) for size in sizes
        ):
            return name
    # The published code looks for this word, and for a model of that name.
    return "clip" if vision.model_type == "clip_vision_model" else "siglip"


def _is_multimodal(name: str) -> bool:
    return bool(re.match(r"mm_|vision_|image_|scales$|use_mm|tokenizer_|tune_|freeze_", name))


def _renamed(name: str, prefixes: Mapping[str, str]) -> str:
    for own, other in prefixes.items():
        if name.startswith(own):
            return other + name.removeprefix(own)
    return name

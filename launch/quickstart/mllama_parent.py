"""The parent of the quickstart's MLlama: one directory like the published ones, random weights.

Real transformers classes in a real Hugging Face directory, only small: AutoProcessor and
AutoModelForImageTextToText load it offline, and the quickstart imports, trains and exports it like
Llama 3.2 Vision.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import AddedToken, processors
from torch import nn
from transformers import (
    GenerationConfig,
    MllamaConfig,
    MllamaForConditionalGeneration,
    MllamaImageProcessor,
    MllamaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.models.mllama.configuration_mllama import MllamaTextConfig, MllamaVisionConfig

from launch.quickstart.parents import QUESTION_SINGLE, QUESTION_STRIP, train_bpe

IMAGE_TOKEN = "<|image|>"
SENTENCES = (
    QUESTION_SINGLE,
    QUESTION_STRIP,
    "system\n\nuser\n\nassistant\n\n",
    "0 1 2 3 4 5 6 7 8 9",
)

# The split rule of Llama 3's tokenizer: digits take no space with them.
_SPLIT_RULE = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPECIAL_TOKENS = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|finetune_right_pad_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
]
_END_TOKENS = ["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"]

# What the published template does without tools: the system header stands in conversations without
# images, where it also gives the date, and a system turn beside images is refused.
CHAT_TEMPLATE = """\
{%- if date_string is not defined -%}
  {%- if strftime_now is defined -%}
    {%- set date_string = strftime_now("%d %b %Y") -%}
  {%- else -%}
    {%- set date_string = "26 Jul 2024" -%}
  {%- endif -%}
{%- endif -%}
{%- set seen = namespace(image=false) -%}
{%- for message in messages if message.content is not string -%}
  {%- for part in message.content if part.type == "image" -%}
    {%- set seen.image = true -%}
  {%- endfor -%}
{%- endfor -%}
{%- set has_system = messages[0].role == "system" -%}
{%- set system = messages[0].content | trim if has_system else "" -%}
{%- if seen.image and system -%}
  {{- raise_exception("A system turn cannot stand in a conversation with images.") -}}
{%- endif -%}
{{- bos_token -}}
{%- if has_system or not seen.image -%}
  {{- "<|start_header_id|>system<|end_header_id|>\\n\\n" -}}
  {{- "Cutting Knowledge Date: December 2023\\nToday Date: " + date_string + "\\n\\n" -}}
  {{- system + "<|eot_id|>" -}}
{%- endif -%}
{%- set turns = messages[1:] if has_system else messages -%}
{%- for message in turns -%}
  {{- "<|start_header_id|>" + message.role + "<|end_header_id|>\\n\\n" -}}
  {%- if message.content is string -%}
    {{- message.content -}}
  {%- else -%}
    {%- for part in message.content -%}
      {{- "<|image|>" if part.type == "image" else part.text -}}
    {%- endfor -%}
  {%- endif -%}
  {{- "<|eot_id|>" -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- "<|start_header_id|>assistant<|end_header_id|>\\n\\n" -}}
{%- endif -%}
"""
_GATE = 1.0
"""Gates are tanh(1.0) = 0.76 open. In a model without trained weights a closed gate would hide the
image from the text at first, and the training is short."""

_POSITION_DEVIATION = 1.0
"""Of the class, position and tile tables: as large as what a patch becomes, for a smaller one takes
three times the steps to be heard."""

_EMBEDDING_DEVIATION = 0.02


@dataclass(frozen=True, kw_only=True)
class MllamaShape:
    """The numbers of a small MLlama; the defaults are the quickstart's.

    Attributes:
        image_size: Side of a tile in pixels.
        patch_size: Side of a patch in pixels.
        max_tiles: Most tiles of an image; 4, as published, or fewer.
        vision_width: Hidden width of both vision encoders.
        vision_layers: Blocks of the local encoder.
        global_layers: Blocks of the global encoder.
        tapped_layers: States of the local encoder that the text sees too; 0 is its input.
        cross_layers: Those of the text layers that attend to the image.
        max_positions: Longest sequence.
    """

    image_size: int = 56
    patch_size: int = 14
    max_tiles: int = 4
    vision_width: int = 96
    vision_heads: int = 4
    vision_mlp_width: int = 384
    vision_layers: int = 2
    global_layers: int = 1
    tapped_layers: tuple[int, ...] = (1,)
    text_width: int = 128
    text_heads: int = 4
    text_kv_heads: int = 2
    text_mlp_width: int = 352
    text_layers: int = 4
    cross_layers: tuple[int, ...] = (1, 3)
    max_positions: int = 131_072


def train_mllama_tokenizer(sentences: Iterable[str] = SENTENCES) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE tokenizer in the manner of Llama 3's on a few sentences.

    The image token is the last one, right after the vocabulary that the model can answer with.

    Args:
        sentences: The text to learn merges from.

    Returns:
        A tokenizer that begins every text with ``<|begin_of_text|>``, with the end token
        ``<|eot_id|>``, the padding token ``<|finetune_right_pad_id|>`` and the chat template.
    """
    tokenizer = train_bpe(sentences, _SPLIT_RULE, _SPECIAL_TOKENS)
    tokenizer.normalizer = None  # Llama's leaves text as it is
    tokenizer.add_special_tokens([AddedToken(IMAGE_TOKEN, special=True, normalized=False)])
    begin = _SPECIAL_TOKENS[0]
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{begin} $A",
                pair=f"{begin} $A {begin}:1 $B:1",
                special_tokens=[(begin, tokenizer.token_to_id(begin))],
            ),
        ]
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=begin,
        eos_token="<|eot_id|>",
        pad_token="<|finetune_right_pad_id|>",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=131_072,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def write_mllama(
    directory: Path,
    tokenizer: PreTrainedTokenizerFast | None = None,
    shape: MllamaShape | None = None,
    seed: int = 0,
) -> None:
    """Writes an MLlama with random weights, its processor and its tokenizer.

    Args:
        directory: The directory to make.
        tokenizer: Its last token is the image token; trained here when not given.
        shape: The numbers of the model.
        seed: Seed of the weights.
    """
    tokenizer = tokenizer or train_mllama_tokenizer()
    shape = shape or MllamaShape()
    config = mllama_config(tokenizer, shape)
    with torch.random.fork_rng(devices=[]):
        model = MllamaForConditionalGeneration(config)
    _initialise(model, shape, seed)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.convert_tokens_to_ids(_END_TOKENS),
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(directory)
    side = {"height": shape.image_size, "width": shape.image_size}
    processor = MllamaProcessor(
        MllamaImageProcessor(
            size=side,
            max_image_tiles=shape.max_tiles,
            image_mean=OPENAI_CLIP_MEAN,
            image_std=OPENAI_CLIP_STD,
        ),
        tokenizer,
        chat_template=CHAT_TEMPLATE,
    )
    processor.save_pretrained(directory)
    # The processor leaves the template out of the tokenizer's file; readers without a processor
    # look for it there, and the published directory has it in both.
    tokenizer.save_pretrained(directory, save_jinja_files=False)


def mllama_config(tokenizer: PreTrainedTokenizerFast, shape: MllamaShape) -> MllamaConfig:
    """Returns the configuration of a shape with the ids of a tokenizer.

    As in the published directories the image token has the id ``vocab_size``: it has an embedding
    but no logit.
    """
    image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    assert image_token_id == len(tokenizer) - 1, "the image token has to be the last one"
    vision = MllamaVisionConfig(
        hidden_size=shape.vision_width,
        num_attention_heads=shape.vision_heads,
        intermediate_size=shape.vision_mlp_width,
        num_hidden_layers=shape.vision_layers,
        num_global_layers=shape.global_layers,
        intermediate_layers_indices=list(shape.tapped_layers),
        vision_output_dim=shape.vision_width * (1 + len(shape.tapped_layers)),
        image_size=shape.image_size,
        patch_size=shape.patch_size,
        max_num_tiles=shape.max_tiles,
        supported_aspect_ratios=_aspect_ratios(shape.max_tiles),
    )
    text = MllamaTextConfig(
        vocab_size=image_token_id,
        hidden_size=shape.text_width,
        num_hidden_layers=shape.text_layers,
        num_attention_heads=shape.text_heads,
        num_key_value_heads=shape.text_kv_heads,
        intermediate_size=shape.text_mlp_width,
        cross_attention_layers=list(shape.cross_layers),
        rope_scaling={
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        max_position_embeddings=shape.max_positions,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.convert_tokens_to_ids(_END_TOKENS),
        pad_token_id=tokenizer.pad_token_id,
    )
    return MllamaConfig(vision, text, image_token_index=image_token_id, torch_dtype="float32")


def _aspect_ratios(max_tiles: int) -> list[list[int]]:
    """All grids of at most so many tiles, in transformers' order (the order is the id)."""
    return [
        [columns, rows]
        for columns in range(1, max_tiles + 1)
        for rows in range(1, max_tiles + 1)
        if columns * rows <= max_tiles
    ]


def _initialise(model: nn.Module, shape: MllamaShape, seed: int) -> None:
    """Draws all weights and opens the gates; biases are zero and norms stay as they are."""
    generator = torch.Generator().manual_seed(seed)
    vision_layers = shape.vision_layers + shape.global_layers
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            layers = vision_layers if "vision_model." in name else shape.text_layers
            if name.endswith(("gate", "gate_attn", "gate_ffn")):
                parameter.fill_(_GATE)
            elif name.endswith("bias"):
                parameter.zero_()
            elif "norm" not in name:
                parameter.normal_(0.0, _deviation(name, parameter, layers), generator=generator)


def _deviation(name: str, parameter: torch.Tensor, layers: int) -> float:
    """Returns the standard deviation that a weight begins with."""
    if "embed_tokens" in name:
        return _EMBEDDING_DEVIATION
    if "embedding" in name and "patch_embedding" not in name:
        return _POSITION_DEVIATION
    deviation = parameter[0].numel() ** -0.5
    # What is added to the residual stream is scaled by the number of additions.
    is_added = any(layer in name for layer in ("o_proj", "fc2", "down_proj"))
    return deviation / math.sqrt(2 * layers) if is_added else deviation

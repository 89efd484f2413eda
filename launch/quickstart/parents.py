"""The parents of the quickstart models: tokenizers, vision and language models, random weights.

They are what a user brings - real transformers classes in real Hugging Face directories - only
small: the quickstart assembles, trains and exports them like the published ones.
"""

import math
import re
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import nn
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2TokenizerFast,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from models.conversation_templates import conversation_template

QUESTION_SINGLE = "この画像の数字は何ですか?"
QUESTION_STRIP = "数字を左から順に読んでください。"
SYSTEM_PROMPT = "あなたは画像を見て日本語で答えるアシスタントです。"
SENTENCES = (
    SYSTEM_PROMPT,
    QUESTION_SINGLE,
    QUESTION_STRIP,
    "system\nuser\nassistant\n",
    "0 1 2 3 4 5 6 7 8 9",
)

# The split rule of Qwen2's tokenizer: every digit stands alone and takes no space with it, so a
# digit is the same token at the start of an answer and after a space.
_SPLIT_RULE = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_CHAT_TEMPLATE = (
    "{%- if messages[0].role != 'system' -%}"
    "{{ '<|im_start|>system\\n" + SYSTEM_PROMPT + "<|im_end|>\\n' }}"
    "{%- endif -%}"
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)
_INIT_STD = 0.02
_POSITION_STD = 0.2
"""Of learned positions: beside trained embeddings, smaller ones would not be seen."""

_VOCABULARY = 400


def train_bpe(
    sentences: Iterable[str],
    split_rule: str,
    special_tokens: list[str],
    vocabulary: int = _VOCABULARY,
) -> Tokenizer:
    """Trains a byte-level BPE tokenizer; the special tokens get the ids after the merges.

    Args:
        sentences: The text to learn merges from.
        split_rule: Regular expression of the pieces that merges stay within.
        special_tokens: Tokens that text never makes up.
        vocabulary: Most tokens in all.

    Returns:
        A tokenizer that can write every text.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split_rule), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences, trainer)
    tokenizer.add_special_tokens(special_tokens)
    return tokenizer


def train_tokenizer(sentences: Iterable[str] = SENTENCES) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE tokenizer in the manner of Qwen2's on a few sentences.

    Args:
        sentences: The text to learn merges from; the vocabulary has as many as there are, up to
            400 in all.

    Returns:
        A tokenizer with all bytes, the end token ``<|im_end|>``, the padding token
        ``<|endoftext|>`` and a ChatML template with a Japanese default system prompt.
    """
    tokenizer = train_bpe(sentences, _SPLIT_RULE, _SPECIAL_TOKENS)
    wrapped = Qwen2TokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        model_max_length=4096,
    )
    wrapped.chat_template = _CHAT_TEMPLATE
    return wrapped


def train_plain_tokenizer(template: str) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE tokenizer with Llama's special tokens and no chat template.

    Args:
        template: Name of the conversation template that will be used: its text is learnt too, or
            every letter of it would be a token.
    """
    texts = re.findall(r"'([^'{}]{6,})'", conversation_template(template, "template").chat_template)
    special_tokens = ["<unk>", "<s>", "</s>"]
    core = train_bpe([*SENTENCES, *texts], _SPLIT_RULE, special_tokens, vocabulary=800)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=4096,
    )


def write_siglip(
    directory: Path,
    *,
    image_size: int = 56,
    patch_size: int = 14,
    width: int = 96,
    heads: int = 4,
    mlp_width: int = 384,
    layers: int = 3,
    seed: int = 0,
) -> None:
    """Writes a SigLIP vision model with random weights and its image processor.

    Args:
        directory: The directory to make.
        image_size: Side of the image in pixels.
        patch_size: Side of a patch in pixels.
        width: Hidden width.
        heads: Attention heads.
        mlp_width: Hidden width of the MLP.
        layers: Blocks; NVILA reads the output of the last but one.
        seed: Seed of the weights.
    """
    config = SiglipVisionConfig(
        image_size=image_size,
        patch_size=patch_size,
        hidden_size=width,
        num_attention_heads=heads,
        intermediate_size=mlp_width,
        num_hidden_layers=layers,
        hidden_act="gelu_pytorch_tanh",
        layer_norm_eps=1e-6,
        vision_use_head=False,
    )
    with torch.random.fork_rng(devices=[]):
        model = SiglipVisionModel(config)
    # The last block is not read, so it does not add to the residual stream that is.
    _initialise(model, ("out_proj", "fc2"), max(layers - 1, 1), seed)
    model.save_pretrained(directory)
    SiglipImageProcessor(size={"height": image_size, "width": image_size}).save_pretrained(
        directory
    )


def write_clip(
    directory: Path,
    *,
    image_size: int = 84,
    patch_size: int = 14,
    width: int = 96,
    heads: int = 4,
    mlp_width: int = 384,
    layers: int = 3,
    seed: int = 0,
) -> None:
    """Writes a CLIP vision model with random weights and its image processor.

    The arguments are those of `write_siglip`; LLaVA, too, reads the output of the last but one.
    """
    config = CLIPVisionConfig(
        image_size=image_size,
        patch_size=patch_size,
        hidden_size=width,
        num_attention_heads=heads,
        intermediate_size=mlp_width,
        num_hidden_layers=layers,
    )
    with torch.random.fork_rng(devices=[]):
        model = CLIPVisionModel(config)
    _initialise(model, ("out_proj", "fc2"), max(layers - 1, 1), seed)
    with torch.no_grad():
        model.vision_model.embeddings.class_embedding.zero_()
        positions = model.vision_model.embeddings.position_embedding.weight
        positions.normal_(0.0, _POSITION_STD, generator=torch.Generator().manual_seed(seed + 1))
    model.save_pretrained(directory)
    CLIPImageProcessor(
        size={"shortest_edge": image_size},
        crop_size={"height": image_size, "width": image_size},
    ).save_pretrained(directory)


def write_llama(
    directory: Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    width: int = 128,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 4,
    mlp_width: int = 352,
    max_positions: int = 4096,
    seed: int = 0,
) -> None:
    """Writes a Llama language model with random weights and its tokenizer.

    The arguments are those of `write_qwen2`; the output layer is not the embedding.
    """
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=mlp_width,
        max_position_embeddings=max_positions,
        rms_norm_eps=1e-5,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        model = LlamaForCausalLM(config)
    _initialise(model, ("o_proj", "down_proj"), layers, seed)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def write_gpt2(
    directory: Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    width: int = 128,
    layers: int = 2,
    heads: int = 4,
    mlp_width: int = 512,
    max_positions: int = 512,
    seed: int = 0,
) -> None:
    """Writes a GPT-2 with random weights, as llm-jp-1.3b is one, and its tokenizer.

    The arguments are those of `write_qwen2`; the output layer is the embedding.
    """
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        n_inner=mlp_width,
        n_positions=max_positions,
        activation_function="gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GPT2LMHeadModel(config)  # whose own initialisation is the usual one
        # Words and positions are added, so neither may drown the other.
        for table in (model.transformer.wte, model.transformer.wpe):
            table.weight.data.normal_(0.0, _POSITION_STD / 2)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def write_qwen2(
    directory: Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    width: int = 128,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    mlp_width: int = 352,
    tied: bool = True,
    max_positions: int = 4096,
    seed: int = 0,
) -> None:
    """Writes a Qwen2 language model with random weights and its tokenizer.

    Args:
        directory: The directory to make.
        tokenizer: Saved beside the model; the vocabulary is exactly as large.
        width: Hidden width, a multiple of ``heads``.
        layers: Blocks.
        heads: Query heads.
        kv_heads: Key and value heads.
        mlp_width: Hidden width of the SwiGLU.
        tied: Whether the output layer is the embedding.
        max_positions: Longest sequence.
        seed: Seed of the weights.
    """
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=mlp_width,
        max_position_embeddings=max_positions,
        rms_norm_eps=1e-6,
        rope_theta=10000.0,
        tie_word_embeddings=tied,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        model = Qwen2ForCausalLM(config)
    _initialise(model, ("o_proj", "down_proj"), layers, seed)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def _initialise(model: nn.Module, residual_names: tuple[str, ...], layers: int, seed: int) -> None:
    """Draws all matrices from a normal distribution; biases are zero, norms stay as they are."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, module in model.named_modules():
            if not isinstance(module, (nn.Linear, nn.Embedding, nn.Conv2d)):
                continue
            # What is added to the residual stream is scaled by the number of additions.
            is_residual = name.rsplit(".", 1)[-1] in residual_names
            scale = 1 / math.sqrt(2 * layers) if is_residual else 1.0
            module.weight.normal_(0.0, _INIT_STD * scale, generator=generator)
            if getattr(module, "bias", None) is not None:
                module.bias.zero_()

"""Assets of small LLaVAs for tests of encoding, with a tokenizer in the manner of Llama's."""

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPImageProcessor,
    LlavaConfig,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from models.conversation_templates import CONVERSATION_TEMPLATES

SIDE, PATCH = 28, 14
SLOTS = (SIDE // PATCH) ** 2
SENTENCES = [
    "A chat between a curious user and an artificial intelligence assistant. USER: ASSISTANT:",
    "What is in the image? A cat sits on the mat. この画像の数字は何ですか? 三毛猫です。",
    "0 1 2 3 4 5 6 7 8 9",
]


def llama_like_tokenizer(template: str | None = CONVERSATION_TEMPLATES["v1"].chat_template):
    """Trains a tokenizer as Llama 2 has it: spaces belong to words, unknown letters are bytes."""
    core = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    # Learnt by words and applied to whole texts, as sentencepiece does it.
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    special = ["<unk>", "<s>", "</s>", "<pad>", "<image>"]
    bytes_ = [f"<0x{number:02X}>" for number in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=[*special, *bytes_], show_progress=False
    )
    core.train_from_iterator(SENTENCES, trainer)
    core.add_special_tokens(special)
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    # As Llama's: a text begins with <s>, unless it has it already.
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", core.token_to_id("<s>"))]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=["<image>"],
    )
    tokenizer.chat_template = template
    return tokenizer


def write_llava_assets(
    folder: Path, tokenizer=None, image_processor=None, strategy: str = "default"
) -> str:
    """Writes what encoding reads: configuration, tokenizer and processor."""
    tokenizer = tokenizer or llama_like_tokenizer()
    config = LlavaConfig(
        vision_config={
            "model_type": "clip_vision_model",
            "image_size": SIDE,
            "patch_size": PATCH,
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
        },
        text_config={"model_type": "llama", "vocab_size": len(tokenizer), "hidden_size": 16},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_select_strategy=strategy,
    )
    config.save_pretrained(folder)
    LlavaProcessor(
        image_processor=image_processor
        or CLIPImageProcessor(
            size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
        ),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    ).save_pretrained(folder)
    return str(folder)

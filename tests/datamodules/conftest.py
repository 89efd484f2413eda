"""Assets folders of nano models: NVILA with 4 tokens per tile of 56 px, MLlama with tiles of 28 px.

Both tokenizers are byte-level BPE; one has ChatML, the other a template in the manner of Llama 3.2.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import MllamaConfig, MllamaImageProcessor, PreTrainedTokenizerFast

from datamodules.encoder import EncoderConfig
from datamodules.mllama_encoder import MllamaEncoder
from datamodules.nvila_encoder import NvilaEncoder
from models.hf_code.configuration_nvila_lite import NVILALiteConfig

SYSTEM = "あなたは日本語で答えるアシスタントです。"
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\n" + SYSTEM + "<|im_end|>\n"
    "{% endif %}{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As Llama 3.2 does it: the head depends on whether an image follows anywhere, a system turn must be
# a string and is refused together with images, and the date is today's unless one is given.
LLAMA = (
    "{{- bos_token }}"
    "{%- if date_string is not defined %}{%- set date_string = strftime_now('%d %b %Y') %}"
    "{%- endif %}"
    "{%- set rules = '' %}{%- set turns = messages %}"
    "{%- if messages[0].role == 'system' %}"
    "{%- set rules = messages[0].content | trim %}{%- set turns = messages[1:] %}{%- endif %}"
    "{%- set seen = namespace(image=false) %}"
    "{%- for turn in turns %}{%- for part in turn.content %}{%- if part.type == 'image' %}"
    "{%- set seen.image = true %}{%- endif %}{%- endfor %}{%- endfor %}"
    "{%- if seen.image and rules %}"
    "{{- raise_exception('Rules and images do not go together') }}{%- endif %}"
    "{%- if not seen.image %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\n\nDay: ' + date_string + '\n\n' }}"
    "{{- rules + '<|eot_id|>' }}{%- endif %}"
    "{%- for turn in turns %}"
    "{{- '<|start_header_id|>' + turn.role + '<|end_header_id|>\n\n' }}"
    "{%- if turn.content is string %}{{- turn.content }}{%- else %}"
    "{%- for part in turn.content %}"
    "{{- '<|image|>' if part.type == 'image' else part.text }}{%- endfor %}{%- endif %}"
    "{{- '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
LLAMA_SPECIAL = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
    "<|finetune_right_pad_id|>",
]
SENTENCES = [
    SYSTEM,
    "この画像の数字は何ですか?",
    "数字を左から順に読んでください。",
    "system\nuser\nassistant\n\nWhat is this? It is a cat.",
]


def train_core(special: list[str]) -> Tokenizer:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=special,
        show_progress=False,
    )
    core.train_from_iterator(SENTENCES * 4, trainer)
    return core


def make_tokenizer(template: str | None = CHATML) -> PreTrainedTokenizerFast:
    core = train_core(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<|im_start|>", AddedToken("<image>", special=True)]}
    )
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer()


def write_assets(folder: Path, tokenizer, **options) -> Path:
    """2x2 compression of 4x4 patches: 4 tokens per tile."""
    tokenizer.save_pretrained(folder)
    NVILALiteConfig(
        text_config={"hidden_size": 32, "num_hidden_layers": 1, "vocab_size": len(tokenizer)},
        vision_config={"image_size": 56, "patch_size": 14, "num_hidden_layers": 3},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        newline_token_id=tokenizer.encode("\n", add_special_tokens=False)[0],
        mm_projector_type="mlp_downsample_2x2_fix",
        **options,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def assets(tmp_path_factory, tokenizer) -> str:
    return str(write_assets(tmp_path_factory.mktemp("assets"), tokenizer))


def save_image(path: Path, width: int, height: int, seed: int = 0) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> str:
    """one.png is one tile, wide.png is 3 + 1 tiles, photo.jpg is 4 x 3 + 1 tiles."""
    folder = tmp_path_factory.mktemp("images")
    save_image(folder / "one.png", 56, 56, 1)
    save_image(folder / "wide.png", 168, 56, 2)
    save_image(folder / "photo.jpg", 640, 480, 3)
    return str(folder)


@pytest.fixture(scope="session")
def make_encoder(assets, images):
    def make(**options) -> NvilaEncoder:
        settings = {"assets": assets, "image_folder": images, "seq_length": 512, **options}
        return NvilaEncoder(EncoderConfig(**settings))

    return make


def llava(*texts: str, image=None, system: str | None = None) -> dict:
    """Question, answer, question, answer, ... as a LLaVA record."""
    turns = [
        {"from": "human" if number % 2 == 0 else "gpt", "value": text}
        for number, text in enumerate(texts)
    ]
    if system is not None:
        turns.insert(0, {"from": "system", "value": system})
    record = {"id": "r", "conversations": turns}
    return record if image is None else {**record, "image": image}


def make_llama_tokenizer(template: str | None = LLAMA) -> PreTrainedTokenizerFast:
    """`<|image|>` is the last token; like Llama's, it puts the first one before a text."""
    core = train_core(LLAMA_SPECIAL)
    begin = "<|begin_of_text|>"
    core.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, core.token_to_id(begin))]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=begin,
        eos_token="<|eot_id|>",
        pad_token="<|finetune_right_pad_id|>",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
    tokenizer.add_tokens([AddedToken("<|image|>", special=True, normalized=False)])
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="session")
def llama_tokenizer():
    return make_llama_tokenizer()


@pytest.fixture(scope="session")
def llama_tokenizer_with():
    """Makes a tokenizer with another chat template."""
    return make_llama_tokenizer


def write_llama_assets(folder: Path, tokenizer, processor=None, **options) -> Path:
    """At most 4 tiles of 28 px."""
    tokenizer.save_pretrained(folder)
    image = tokenizer.get_vocab().get("<|image|>", 0)
    MllamaConfig(
        text_config={"vocab_size": image, "pad_token_id": tokenizer.pad_token_id},
        vision_config={"image_size": 28, "patch_size": 14, "max_num_tiles": 4},
        image_token_index=options.get("image_token_index", image),
    ).save_pretrained(folder)
    settings = {"size": {"height": 28, "width": 28}, "max_image_tiles": 4, **(processor or {})}
    MllamaImageProcessor(**settings).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def new_llama_assets():
    """Writes an assets folder of a nano MLlama for a tokenizer."""
    return write_llama_assets


@pytest.fixture(scope="session")
def llama_assets(tmp_path_factory, llama_tokenizer) -> str:
    return str(write_llama_assets(tmp_path_factory.mktemp("llama_assets"), llama_tokenizer))


@pytest.fixture(scope="session")
def make_llama_encoder(llama_assets, images):
    def make(**options) -> MllamaEncoder:
        settings = {"assets": llama_assets, "image_folder": images, "seq_length": 512, **options}
        return MllamaEncoder(EncoderConfig(**settings))

    return make


@pytest.fixture(scope="session")
def make_record():
    return llava


def write_lines(path: Path, records: list) -> str:
    path.write_text(
        "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records),
        encoding="utf-8",
    )
    return str(path)


@pytest.fixture(scope="session")
def write_jsonl():
    return write_lines


@pytest.fixture(scope="session")
def tokenizer_with():
    """Makes a tokenizer with another chat template."""
    return make_tokenizer


@pytest.fixture(scope="session")
def new_assets():
    """Writes an assets folder for a tokenizer."""
    return write_assets


@pytest.fixture(scope="session")
def new_image():
    """Writes an image of noise."""
    return save_image


@pytest.fixture(scope="session")
def crude(tmp_path_factory):
    """Prepared shards of conversations: 23 for training, 11 for validation."""
    from tests.datamodules import energon_data as data

    splits = {
        "train": [data.good_sample(number) for number in range(data.TRAIN)],
        "val": [data.good_sample(number, "v") for number in range(data.VALIDATION)],
    }
    return data.write_set(tmp_path_factory.mktemp("energon") / "crude", splits)


@pytest.fixture(scope="session")
def train_keys(crude):
    from tests.datamodules.energon_data import TRAIN, keys_of

    return keys_of(crude, "train", [f"s{number:04d}" for number in range(TRAIN)])


@pytest.fixture(scope="session")
def energon_encoder(assets):
    from datamodules.sample_encoder import open_encoder

    encoder = open_encoder(assets, 128)
    encoder.prepare()
    return encoder


@pytest.fixture
def make_energon(energon_encoder):
    """Makes a loader over shards; loaders end with the test."""
    from megatron.energon import WorkerConfig

    from datamodules.bad_samples import BadSampleLog
    from datamodules.energon_loaders import evaluation_batches, training_batches
    from datamodules.energon_shards import open_shards
    from datamodules.energon_task import ConversationTask
    from datamodules.packing import Room
    from tests.datamodules.energon_data import MICRO_BATCH

    def make(paths, split="train", *, workers=0, rank=0, ranks=1, seed=7, **options):
        paths = [paths] if isinstance(paths, str) else paths
        training = options.pop("training", True)
        weights = options.pop("weights", None)
        log = options.pop("log", None) or BadSampleLog(None, 100)
        config = WorkerConfig(rank=rank, world_size=ranks, num_workers=workers, seed_offset=seed)
        shards = open_shards(
            paths,
            weights,
            split,
            config,
            training=training,
            max_samples_per_sequence=4 if training else None,
        )
        collate = options.pop("encoder", energon_encoder).collator(8, None)
        task = ConversationTask(
            energon_encoder,
            collate,
            log,
            fill=not training,
            room=Room(positions=128),
            decode_log=options.pop("decode_log", log),
        )
        if training:
            defaults = {"shuffle_buffer_size": 6, "packing_buffer_size": None, "remembered": 8}
            options = defaults | options
            return training_batches(shards, task, config, micro_batch_size=MICRO_BATCH, **options)
        return evaluation_batches(
            shards, task, config, micro_batch_size=MICRO_BATCH, **{"multiple_of": 1, **options}
        )

    return make

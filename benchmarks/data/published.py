"""The paths that ours replaces, over the same JPEG files and the same text."""

import dataclasses
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import AutoProcessor, SiglipImageProcessor

from datamodules.nvila_encoder import NvilaEncoder
from models.hf_code.tiling_nvila_lite import choose_grid
from sample_loaders.conversation import ConversationSample

Way = Callable[[], Any]


def nvila_published(
    encoder: NvilaEncoder, sample: ConversationSample, data: bytes, max_tiles: int, folder: Path
) -> Way:
    """Pillow crops, and SiglipImageProcessor makes normalised floats of each."""
    processor = SiglipImageProcessor.from_pretrained(folder)
    side = processor.size["height"]

    def encode() -> Any:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        columns, rows = choose_grid(*image.size, side, max_tiles)
        grid = image.resize((columns * side, rows * side), Image.Resampling.BICUBIC)
        tiles = [
            grid.crop((left, top, left + side, top + side))
            for top in range(0, rows * side, side)
            for left in range(0, columns * side, side)
        ]
        if len(tiles) > 1:
            tiles.append(image.resize((side, side), Image.Resampling.BICUBIC))
        plan = encoder.plan(sample, lambda name: io.BytesIO(data))
        return plan, processor(tiles, return_tensors="pt")["pixel_values"]

    return encode


def mllama_published(text: Mapping[str, str], data: bytes, folder: Path) -> Way:
    processor = AutoProcessor.from_pretrained(folder)
    messages = [
        {
            "role": "user",
            "content": [{"type": "image"}, {"type": "text", "text": text["question"]}],
        },
        {"role": "assistant", "content": [{"type": "text", "text": text["answer"]}]},
    ]

    def encode() -> Any:
        image = Image.open(io.BytesIO(data))
        prompt = processor.apply_chat_template(messages, date_string="26 Jul 2024")
        return processor(images=image, text=prompt, add_special_tokens=False, return_tensors="pt")

    return encode


def nemo_ways(
    text: Mapping[str, str], images: Mapping[str, bytes], nvila: Path, mllama: Path, work: Path
) -> dict[str, dict[str, Way]]:
    """NeMo's encoders by the name of the image; importing them costs half a minute."""
    from launch import backend

    backend.activate(cpu=True)
    from megatron.energon import VQASample
    from nemo.collections.multimodal.data.energon.config import ImageToken, MultiModalSampleConfig
    from nemo.collections.multimodal.data.energon.conversation import MLlamaTemplateConfig
    from nemo.collections.vlm.mllama.data.preloaded import MLlamaDataset
    from nemo.collections.vlm.mllama.data.sample_encoder import LlamaImageTextSample
    from nemo.collections.vlm.mllama.data.task_encoder import LlamaTaskEncoder
    from nemo.collections.vlm.neva.data.config import ImageDataConfig
    from nemo.collections.vlm.neva.data.preloaded import NevaDataset
    from transformers import AutoTokenizer, MllamaImageProcessor

    tokenizer = AutoTokenizer.from_pretrained(mllama)
    processor = MllamaImageProcessor.from_pretrained(mllama)
    image_id = tokenizer.convert_tokens_to_ids("<|image|>")
    config = MultiModalSampleConfig(
        image_token=ImageToken(token_str="<|image|>", token_id=image_id),
        conversation_template_config=MLlamaTemplateConfig(),
    )
    ways: dict[str, dict[str, Way]] = {}
    for name, data in images.items():
        (work / name).write_bytes(data)
        path = work / f"{name}.json"
        turns = [("human", f"<image>{text['question']}"), ("gpt", text["answer"])]
        record = {
            "id": name,
            "image": name,
            "conversations": [{"from": role, "value": value} for role, value in turns],
        }
        path.write_text(json.dumps([record]), encoding="utf-8")
        settings = ImageDataConfig(conv_template="mllama", image_folder=str(work))
        stock = MLlamaDataset(str(path), settings, tokenizer, processor, 4096)
        siglip = SiglipImageProcessor.from_pretrained(nvila)
        neva = NevaDataset(str(path), settings, tokenizer, siglip)
        for dataset in (stock, neva):
            dataset.conv = dataclasses.replace(dataset.conv, tokenizer_name_or_path=str(mllama))
        tasks = LlamaTaskEncoder(tokenizer, processor, config)

        def energon(data: bytes = data, tasks: Any = tasks) -> Any:
            sample = VQASample(
                __key__="k",
                __restore_key__=(),
                __subflavor__=None,
                __subflavors__={},
                image=Image.open(io.BytesIO(data)).convert("RGB"),
                context=f"<|image|>{text['question']}",
                answers=text["answer"],
            )
            encoder = tasks.encoders["VQASample"]
            return tasks.batch([encoder.encode(sample, LlamaImageTextSample())])

        ways[name] = {
            "MLlama preloaded": lambda dataset=stock: dataset.collate_fn([dataset[0]]),
            "MLlama Energon": energon,
            "NeVA preloaded": lambda dataset=neva: dataset.collate_fn([dataset[0]]),
        }
    return ways

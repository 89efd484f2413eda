"""A LLaVA's answers: in batches as alone, and from the prompt that training renders."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from datamodules.images import ImageFolder
from datamodules.sample_encoder import open_encoder
from evaluation.families import FAMILIES
from evaluation.generation import answer, load, open_processor
from evaluation.query import Query
from models.conversation_templates import CONVERSATION_TEMPLATES
from sample_loaders.conversation import parse_llava

FAMILY = FAMILIES["llava"]
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions."
)


def noise_image(width, height=56, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A LLaVA whose every part moves the logits, with the template v1."""
    from launch.quickstart.llava_parent import LlavaShape, train_llava_tokenizer, write_llava

    path = tmp_path_factory.mktemp("export") / "llava"
    tokenizer = train_llava_tokenizer()
    tokenizer.bos_token = "<|im_start|>"
    tokenizer.chat_template = CONVERSATION_TEMPLATES["v1"].chat_template
    write_llava(path, tokenizer, LlavaShape())
    model = LlavaForConditionalGeneration.from_pretrained(path)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(1.5).add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    model.save_pretrained(path)
    return path


def queries():
    return [
        Query.ask("数字を左から順に読んでください。", [noise_image(112, seed=1)]),
        Query.ask("1 2 3"),
        Query.ask("何?", [noise_image(56, seed=2)]),
        Query.ask("前<image>と<image>\nの違いは?", [noise_image(60, seed=3), noise_image(70)]),
        Query(
            [
                {"role": "user", "content": "<image>\n一つ目"},
                {"role": "assistant", "content": "3"},
                {"role": "user", "content": "二つ目<image>"},
            ],
            [noise_image(56, seed=5), noise_image(90, seed=6)],
        ),
        Query([{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]),
    ]


def greedy_alone(directory, query, text, max_new_tokens):
    """Answers without a cache, from a prompt written by hand."""
    model = LlavaForConditionalGeneration.from_pretrained(directory).eval()
    processor = AutoProcessor.from_pretrained(directory)
    images = list(query.images) or None
    inputs = processor(text=text, images=images, add_special_tokens=False, return_tensors="pt")
    ids, pixels = inputs["input_ids"], inputs.get("pixel_values")
    new = []
    while len(new) < max_new_tokens and not (new and new[-1] == processor.tokenizer.eos_token_id):
        grown = torch.cat([ids, torch.tensor([new]).long()], dim=1)
        with torch.no_grad():
            logits = model(input_ids=grown, pixel_values=pixels).logits
        new.append(int(logits[0, -1].argmax()))
    return processor.decode(new, skip_special_tokens=True).strip()


def test_batches_answer_as_every_query_alone(directory):
    model, processor = load(directory)
    texts = [
        f"{SYSTEM} USER: <image>\n数字を左から順に読んでください。 ASSISTANT:",
        f"{SYSTEM} USER: 1 2 3 ASSISTANT:",
        f"{SYSTEM} USER: <image>\n何? ASSISTANT:",
        f"{SYSTEM} USER: <image>\n<image>\n前との違いは? ASSISTANT:",
        f"{SYSTEM} USER: <image>\n一つ目 ASSISTANT: 3<|im_end|>USER: <image>\n二つ目 ASSISTANT:",
        "s USER: q ASSISTANT:",
    ]
    asked = queries()
    assert [FAMILY.prompt(processor, query) for query in asked] == [
        f"<|im_start|>{text}" for text in texts
    ]
    found = answer(model, processor, asked, max_new_tokens=6, batch_size=4)
    assert found == [
        greedy_alone(directory, query, f"<|im_start|>{text}", 6)
        for query, text in zip(asked, texts, strict=True)
    ]
    assert len(set(found)) > 2


def test_the_prompt_is_what_training_has_before_the_answer(directory, tmp_path):
    _, processor = open_processor(directory)
    noise_image(112, seed=1).save(tmp_path / "a.png")
    record = {
        "image": "a.png",
        "conversations": [
            {"from": "human", "value": "何<image>?"},
            {"from": "gpt", "value": "7"},
        ],
    }
    encoder = open_encoder(str(directory), 400, image_resize="exact")
    encoded = encoder.encode(parse_llava(record, key="k", source="s"), ImageFolder(tmp_path))
    inputs = FAMILY.inputs(processor, [Query.ask("何<image>?", [tmp_path / "a.png"])])
    first = int(np.flatnonzero(encoded.labels != -100)[0]) + 1
    assert inputs["input_ids"][0].tolist() == encoded.tokens[:first].tolist()
    mean, std = (
        torch.tensor(one).view(3, 1, 1)
        for one in (processor.image_processor.image_mean, processor.image_processor.image_std)
    )
    made = (torch.from_numpy(encoded.tiles) / 255 - mean) / std
    assert (made - inputs["pixel_values"]).abs().max() <= 1e-6

import base64
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import SiglipImageProcessor

from models.hf_code.processing_nvila_lite import NVILALiteProcessor


def noise_image(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def real_processor(tokenizer, downsample):
    """448 px tiles as in the published models, with the nano tokenizer."""
    image_processor = SiglipImageProcessor(
        size={"height": 448, "width": 448}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    return NVILALiteProcessor(image_processor, tokenizer, patch_size=14, downsample=downsample)


@pytest.mark.parametrize(("downsample", "features"), [(2, 256), (3, 121)])
def test_token_layout_at_real_sizes(nano_tokenizer, downsample, features):
    processor = real_processor(nano_tokenizer, downsample)
    image, newline = processor.image_token_id, nano_tokenizer.encode("\n")
    question = nano_tokenizer.encode("この画像の数字は何ですか?")
    inputs = processor("<image>\nこの画像の数字は何ですか?", noise_image(448, 448))
    one_tile = [image] * features + newline + newline
    assert inputs["input_ids"].tolist() == [one_tile + question]
    assert len(one_tile) == {2: 258, 3: 123}[downsample]

    inputs = processor("<image>\nこの画像の数字は何ですか?", noise_image(640, 480))
    assert inputs["input_ids"].tolist() == [one_tile * 13 + question]
    assert inputs["pixel_values"].shape == (13, 3, 448, 448)
    assert len(one_tile) * 13 == {2: 3354, 3: 1599}[downsample]


def nano_layout(tokenizer, *parts):
    """Ids of the parts, where a number stands for as many tiles of four features."""
    newline = tokenizer.encode("\n")
    tile = [tokenizer.convert_tokens_to_ids("<image>")] * 4 + newline + newline
    ids = []
    for part in parts:
        ids += tile * part if isinstance(part, int) else tokenizer.encode(part)
    return ids


def test_several_images_are_all_tiled_where_they_stand(nano_processor, nano_tokenizer):
    images = [noise_image(168, 56), noise_image(56, 56), noise_image(112, 56)]
    inputs = nano_processor("数字<image>を<image>\nください<image>", images)
    expected = nano_layout(nano_tokenizer, "数字", 4, "を", 1, "ください", 3)
    assert inputs["input_ids"].tolist() == [expected]
    assert inputs["attention_mask"].tolist() == [[1] * len(expected)]
    assert inputs["pixel_values"].shape == (8, 3, 56, 56)


def test_max_tiles_of_one_call(nano_processor, nano_tokenizer):
    inputs = nano_processor("<image>a", noise_image(168, 56), max_tiles=1)
    assert inputs["input_ids"].tolist() == [nano_layout(nano_tokenizer, 1, "a")]


def test_text_only(nano_processor, nano_tokenizer):
    inputs = nano_processor("数字を左から")
    assert inputs["input_ids"].tolist() == [nano_tokenizer.encode("数字を左から")]
    assert "pixel_values" not in inputs


def test_batches_are_padded_on_the_left(nano_processor, nano_tokenizer):
    image = noise_image(56, 56)
    texts = ["左から", "<image>\n数字を順に", "a"]
    inputs = nano_processor(texts, [[], [image], []])
    rows = [nano_layout(nano_tokenizer, *parts) for parts in [["左から"], [1, "数字を順に"], ["a"]]]
    length = max(map(len, rows))
    padding = nano_tokenizer.convert_tokens_to_ids("<|endoftext|>")
    expected = [[padding] * (length - len(row)) + row for row in rows]
    assert inputs["input_ids"].tolist() == expected
    masks = [[0] * (length - len(row)) + [1] * len(row) for row in rows]
    assert inputs["attention_mask"].tolist() == masks
    assert inputs["input_ids"].dtype == inputs["attention_mask"].dtype == torch.int64


def test_flat_images_are_dealt_out_by_the_placeholders(nano_processor):
    images = [noise_image(56, 56, seed) for seed in range(3)]
    texts = ["<image><image>a", "b", "<image>c"]
    flat = nano_processor(texts, images)
    nested = nano_processor(texts, [images[:2], [], images[2:]])
    for name in ("input_ids", "attention_mask", "pixel_values"):
        assert torch.equal(flat[name], nested[name])


@pytest.mark.parametrize(
    ("texts", "groups"),
    [
        ("<image>", []),
        ("a", [1]),
        (["<image>", "<image><image>"], [2, 1]),
        (["a", "b"], [1]),
    ],
)
def test_placeholders_and_images_must_match(nano_processor, texts, groups):
    images = [[noise_image(56, 56)] * count for count in groups]
    with pytest.raises(ValueError, match="placeholder for every image|one for each"):
        nano_processor(texts, images)


def test_pixels_are_those_of_the_siglip_image_processor(nano_processor):
    image = noise_image(56, 56)
    found = nano_processor("<image>", image)["pixel_values"]
    expected = nano_processor.image_processor(image, return_tensors="pt")["pixel_values"]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    black_to_white = np.zeros((56, 56, 3), np.uint8)
    black_to_white[28:] = 255
    found = nano_processor("<image>", Image.fromarray(black_to_white))["pixel_values"]
    assert found[0, 0, 0, 0] == -1
    assert found[0, 0, -1, 0] == 1


SYSTEM = "あなたは画像を見て日本語で答えるアシスタントです。"
RENDERED = (
    f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n<image>左から?<|im_end|>\n"
    "<|im_start|>assistant\n3<|im_end|>\n<|im_start|>user\n次は<image><|im_end|>\n"
    "<|im_start|>assistant\n"
)


def conversation(first, second):
    return [
        {"role": "user", "content": [first, {"type": "text", "text": "左から?"}]},
        {"role": "assistant", "content": "3"},
        {"role": "user", "content": [{"type": "text", "text": "次は"}, second]},
    ]


def test_chat_template_takes_lists_and_strings(nano_processor):
    placeholder = {"type": "image"}
    lists = conversation(placeholder, placeholder)
    assert nano_processor.apply_chat_template(lists, add_generation_prompt=True) == RENDERED
    strings = [
        {"role": "user", "content": "<image>左から?"},
        {"role": "assistant", "content": "3"},
        {"role": "user", "content": "次は<image>"},
    ]
    assert nano_processor.apply_chat_template(strings, add_generation_prompt=True) == RENDERED
    both = nano_processor.apply_chat_template([lists, strings], add_generation_prompt=True)
    assert both == [RENDERED, RENDERED]
    assert lists[0]["content"][0] == placeholder  # the input is left alone


def test_chat_template_makes_inputs_of_images_in_any_turn(nano_processor, tmp_path):
    first, second = noise_image(112, 56, 1), noise_image(56, 56, 2)
    expected = nano_processor(RENDERED, [first, second])
    second.save(tmp_path / "second.png")
    buffer = BytesIO()
    first.save(buffer, "PNG")
    variants = [
        ({"image": first}, {"path": str(tmp_path / "second.png")}),
        (
            {"base64": base64.b64encode(buffer.getvalue()).decode()},
            {"url": str(tmp_path / "second.png")},
        ),
    ]
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}
    for one, two in variants:
        messages = conversation({"type": "image"} | one, {"type": "image"} | two)
        found = nano_processor.apply_chat_template(messages, **options)
        for name in ("input_ids", "attention_mask", "pixel_values"):
            assert torch.equal(found[name], expected[name])
    messages = conversation({"type": "image"}, {"type": "image"})
    found = nano_processor.apply_chat_template(messages, images=[first, second], **options)
    assert torch.equal(found["pixel_values"], expected["pixel_values"])


def test_wrong_messages(nano_processor):
    message = {"role": "user", "content": [{"type": "video", "video": "a.mp4"}]}
    with pytest.raises(ValueError, match="type 'video' is not supported"):
        nano_processor.apply_chat_template([message])
    image = noise_image(56, 56)
    message = {"role": "user", "content": [{"type": "image", "image": image}]}
    with pytest.raises(ValueError, match="not in both"):
        nano_processor.apply_chat_template([message], images=[image], tokenize=True)
    with pytest.raises(ValueError, match="padding=False is not allowed"):
        nano_processor(["a", "数字です"], padding=False)


def test_the_tokenizer_must_have_the_image_token():
    from launch.quickstart.parents import train_tokenizer

    with pytest.raises(ValueError, match="splits '<image>' into"):
        real_processor(train_tokenizer(), 2)

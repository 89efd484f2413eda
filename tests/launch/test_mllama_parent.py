import json

import numpy as np
import pytest
import torch
from jinja2 import TemplateError
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    MllamaForConditionalGeneration,
    MllamaProcessor,
)

from launch.quickstart.mllama_parent import (
    MllamaShape,
    train_mllama_tokenizer,
    write_mllama,
)
from launch.quickstart.parents import QUESTION_SINGLE

IMAGE = {"type": "image"}
DATE = {"date_string": "1 Jan 2025"}
HEADER = (
    "<|start_header_id|>system<|end_header_id|>\n\n"
    "Cutting Knowledge Date: December 2023\nToday Date: 1 Jan 2025\n\n"
)


def text(words):
    return {"type": "text", "text": words}


def turn(role, words):
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n{words}<|eot_id|>"


@pytest.fixture(scope="module")
def tokenizer():
    return train_mllama_tokenizer()


@pytest.fixture(scope="module")
def directory(tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("parent") / "mllama"
    write_mllama(path, tokenizer)
    return path


@pytest.fixture(scope="module")
def processor(directory):
    return AutoProcessor.from_pretrained(directory)


def test_digits_are_single_tokens_wherever_they_stand(tokenizer):
    for digit in "0123456789":
        alone = tokenizer.encode(digit, add_special_tokens=False)
        assert len(alone) == 1
        for before in (" ", "\n\n", "は", "<|end_header_id|>\n\n"):
            ids = tokenizer.encode(before + digit, add_special_tokens=False)
            assert ids[-1:] == alone
            assert ids[:-1] == tokenizer.encode(before, add_special_tokens=False)


def test_every_text_survives(tokenizer):
    # The half-width voiced kana and the ligature would change under a normalisation.
    for words in (QUESTION_SINGLE, "漢字 ＡＢＣ\n\n😀 it's 42", "a  b\tc", "か\u3099 ﬁ"):
        ids = tokenizer.encode(words, add_special_tokens=False)
        assert tokenizer.decode(ids) == words


def test_special_tokens_are_placed_like_those_of_llama(tokenizer):
    ids = tokenizer.convert_tokens_to_ids(
        ["<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>"]
        + ["<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>"]
        + ["<|python_tag|>", "<|image|>"]
    )
    assert ids == list(range(len(tokenizer) - 9, len(tokenizer)))
    assert tokenizer.encode("a")[0] == tokenizer.bos_token_id == ids[0]
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|eot_id|>", "<|finetune_right_pad_id|>")
    assert len(tokenizer.encode("<|image|>", add_special_tokens=False)) == 1


def test_training_is_repeatable(tokenizer):
    assert train_mllama_tokenizer().get_vocab() == tokenizer.get_vocab()


@pytest.mark.parametrize(
    ("messages", "options", "expected"),
    [
        (
            [{"role": "user", "content": "a "}],
            {"add_generation_prompt": True},
            HEADER
            + "<|eot_id|>"
            + turn("user", "a ")
            + "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        (
            [{"role": "system", "content": " s\n"}, {"role": "user", "content": [text("a")]}],
            {},
            HEADER + "s<|eot_id|>" + turn("user", "a"),
        ),
        (
            [{"role": "user", "content": [text("x"), IMAGE, IMAGE, text("y")]}]
            + [{"role": "assistant", "content": "3"}, {"role": "user", "content": "z"}],
            {},
            turn("user", "x<|image|><|image|>y") + turn("assistant", "3") + turn("user", "z"),
        ),
        (
            [{"role": "system", "content": " "}, {"role": "user", "content": [IMAGE]}],
            {},
            HEADER + "<|eot_id|>" + turn("user", "<|image|>"),
        ),
    ],
)
def test_chat_template(processor, messages, options, expected):
    rendered = processor.apply_chat_template(messages, **DATE, **options)
    assert rendered == "<|begin_of_text|>" + expected
    assert rendered == processor.tokenizer.apply_chat_template(
        messages, tokenize=False, **DATE, **options
    )


def test_a_system_turn_beside_an_image_is_refused(processor):
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": [IMAGE]}]
    with pytest.raises(TemplateError, match="cannot stand in a conversation with images"):
        processor.apply_chat_template(messages)


def test_the_template_is_in_both_places(directory):
    stored = (directory / "chat_template.jinja").read_text()
    assert json.loads((directory / "tokenizer_config.json").read_text())["chat_template"] == stored
    assert AutoTokenizer.from_pretrained(directory).chat_template == stored


def test_the_directory_is_one_that_transformers_loads(directory, tokenizer):
    processor = AutoProcessor.from_pretrained(directory)
    assert isinstance(processor, MllamaProcessor)
    model, report = AutoModelForImageTextToText.from_pretrained(directory, output_loading_info=True)
    assert isinstance(model, MllamaForConditionalGeneration)
    assert not any(report.values())
    # As in the published directories: an image has an embedding, but no logit.
    vocabulary = tokenizer.convert_tokens_to_ids("<|image|>")
    assert model.config.image_token_index == model.config.text_config.vocab_size == vocabulary
    assert processor.image_token_id == vocabulary
    assert model.model.language_model.embed_tokens.num_embeddings == vocabulary + 8
    assert model.lm_head.out_features == vocabulary
    ends = tokenizer.convert_tokens_to_ids(["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"])
    assert model.generation_config.eos_token_id == ends
    image = Image.fromarray(np.full((56, 112, 3), 255, dtype=np.uint8))
    inputs = processor(images=[[image]], text=["<|image|>a"], return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 1, 4, 3, 56, 56)
    assert inputs["aspect_ratio_mask"].tolist() == [[[1, 1, 0, 0]]]
    white = (1 - torch.tensor([0.48145466, 0.4578275, 0.40821073])) / torch.tensor(
        [0.26862954, 0.26130258, 0.27577711]
    )
    assert torch.allclose(inputs["pixel_values"][0, 0, 1, :, 5, 5], white, atol=1e-4)
    with torch.no_grad():
        logits = model(**inputs).logits
    assert logits.shape == (1, inputs["input_ids"].shape[1], vocabulary)


def test_shape(directory, tokenizer, tmp_path):
    config = AutoModelForImageTextToText.from_pretrained(directory).config
    vision, language = config.vision_config, config.text_config
    assert (vision.image_size, vision.patch_size, vision.max_num_tiles) == (56, 14, 4)
    assert vision.supported_aspect_ratios == [
        *([1, 1], [1, 2], [1, 3], [1, 4]),
        *([2, 1], [2, 2], [3, 1], [4, 1]),
    ]
    assert (vision.hidden_size, vision.num_hidden_layers, vision.num_global_layers) == (96, 2, 1)
    assert (vision.intermediate_layers_indices, vision.vision_output_dim) == ([1], 192)
    assert (language.hidden_size, language.num_hidden_layers) == (128, 4)
    assert language.cross_attention_layers == [1, 3]
    assert language.rope_scaling["rope_type"] == "llama3"
    write_mllama(tmp_path, tokenizer, MllamaShape(max_tiles=2, tapped_layers=(0, 2)))
    other = AutoModelForImageTextToText.from_pretrained(tmp_path).config.vision_config
    assert other.supported_aspect_ratios == [[1, 1], [1, 2], [2, 1]]
    assert other.vision_output_dim == 288


def test_weights_begin_as_documented(directory):
    stored = load_file(directory / "model.safetensors")
    gates = [tensor.item() for name, tensor in stored.items() if tensor.numel() == 1]
    assert gates == [1.0] * 9  # position, two tile tables, one global layer, two cross layers
    by_end = {name.removeprefix("model."): tensor for name, tensor in stored.items()}

    def find(end):
        (tensor,) = [tensor for name, tensor in by_end.items() if name.endswith(end)]
        return tensor

    _is_normal(find("gated_positional_embedding.tile_embedding.weight"), 1.0)
    _is_normal(find("patch_embedding.weight"), (3 * 14 * 14) ** -0.5)
    _is_normal(find("embed_tokens.weight"), 0.02)
    _is_normal(find("layers.3.cross_attn.q_proj.weight"), 128**-0.5)
    _is_normal(find("layers.2.mlp.down_proj.weight"), (352 * 8) ** -0.5)
    _is_normal(find("global_transformer.layers.0.mlp.fc2.weight"), (384 * 6) ** -0.5)
    assert find("multi_modal_projector.bias").abs().max() == 0
    assert find("layers.1.cross_attn.k_norm.weight").eq(1).all()


def test_weights_depend_on_the_seed_alone(tmp_path, tokenizer):
    state = torch.random.get_rng_state()
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.rand(seed)
        write_mllama(tmp_path / name, tokenizer, seed=seed)
    one, same, other = (load_file(tmp_path / name / "model.safetensors") for name in "abc")
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)
    torch.random.set_rng_state(state)


def _is_normal(tensor, deviation):
    assert abs(tensor.std().item() / deviation - 1) < 0.1
    assert abs(tensor.mean().item()) < deviation / 5

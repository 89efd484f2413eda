import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTokenizer,
)

from preparation.clip import ClipSimilarity
from preparation.formats.rows import Refusal
from preparation.reasons import RejectionReason
from preparation.source import RawImage

COLOURS = ("red", "green", "blue", "white", "black")
SENTENCES = ["a cab", "bead", "decade of beads", "c", "a" * 50, "face", "dead beef"]


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A random CLIP model of a few thousand numbers."""
    folder = tmp_path_factory.mktemp("clip")
    letters = "abcdefo "
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer.model_max_length = 12
    tokenizer.save_pretrained(folder)
    side = {"height": 8, "width": 8}
    CLIPImageProcessor(size=side, crop_size=side, do_center_crop=False).save_pretrained(folder)
    text = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 12, "vocab_size": len(words),
        "eos_token_id": len(words) - 1, "bos_token_id": len(words) - 2,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": 8, "patch_size": 4,
    }  # fmt: skip
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    CLIPModel(config).save_pretrained(folder)
    return folder


def pictures(picture):
    return [RawImage(name=colour, data=picture(colour, "PNG", (20, 10))) for colour in COLOURS]


def expected_matrix(folder):
    """By the model's own forward pass, pair by pair."""
    model = CLIPModel.from_pretrained(folder).eval()
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    processor = CLIPImageProcessor.from_pretrained(folder)
    matrix = np.zeros((len(COLOURS), len(SENTENCES)))
    for row, colour in enumerate(COLOURS):
        pixels = processor(Image.new("RGB", (20, 10), colour), return_tensors="pt").pixel_values
        for column, sentence in enumerate(SENTENCES):
            ids = tokenizer([sentence], truncation=True, max_length=12, return_tensors="pt")
            with torch.no_grad():
                output = model(pixel_values=pixels, **ids)
            matrix[row, column] = torch.cosine_similarity(output.image_embeds, output.text_embeds)
    return matrix


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_similarities_are_those_of_the_model(clip_folder, picture, batch_size):
    matrix = ClipSimilarity(clip_folder, batch_size).matrix(pictures(picture), SENTENCES)
    expected = expected_matrix(clip_folder)
    np.testing.assert_allclose(matrix, expected, atol=1e-5)
    assert matrix.argmax(axis=1).tolist() == expected.argmax(axis=1).tolist()
    assert matrix.dtype == np.float32


def test_nothing_to_compare(clip_folder, picture):
    clip = ClipSimilarity(clip_folder)
    assert clip.matrix([], SENTENCES).shape == (0, 7)
    assert clip.matrix(pictures(picture), []).shape == (5, 0)


def test_images_that_cannot_be_decoded_are_refused(clip_folder, picture):
    clip = ClipSimilarity(clip_folder)
    for data, reason in (
        (b"no image", RejectionReason.UNREADABLE_IMAGE),
        (picture("red")[:200], RejectionReason.UNREADABLE_IMAGE),
        (picture("red", "PNG", (16_001, 1)), RejectionReason.IMAGE_TOO_LARGE),
    ):
        with pytest.raises(Refusal) as caught:
            clip.matrix([RawImage(name="x", data=data)], ["a"])
        assert caught.value.reason is reason


def test_other_folders_are_refused(tmp_path, picture):
    with pytest.raises(ValueError, match=r"config\.json"):
        ClipSimilarity(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="bert"):
        ClipSimilarity(tmp_path).matrix(pictures(picture), ["a"])


def test_documents_are_placed_by_the_model(clip_folder, picture, tmp_path, read, write_lines):
    import base64

    infos = [
        {"image_base64": base64.b64encode(image.data).decode(), "matched_text_index": 0}
        for image in pictures(picture)
    ]
    path = write_lines(tmp_path / "a.jsonl", [{"text_list": SENTENCES, "image_info": infos}])
    [sample], rejected = read("interleaved", path, clip_model=clip_folder, max_images=4)
    assert rejected == []
    matrix = expected_matrix(clip_folder)
    kept = sorted(range(5), key=lambda image: -matrix[image].max())[:4]
    best = matrix.argmax(axis=1)
    order = sorted(kept, key=lambda image: (best[image], image))
    assert [image.data for image in sample.images] == [
        pictures(picture)[image].data for image in order
    ]
    assert sample.similarity == pytest.approx([matrix[i].max() for i in order], abs=1e-5)
    expected = " ".join(
        "<image>\n" * sum(best[image] == number for image in order) + sentence
        for number, sentence in enumerate(SENTENCES)
    ).replace(" <image>", "<image>")
    assert sample.record["document"] == expected

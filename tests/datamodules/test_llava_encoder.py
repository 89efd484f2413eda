"""Samples of LLaVA: text and pixels as transformers' own processor makes them, masks by hand."""

import numpy as np
import pytest
from PIL import Image
from transformers import (
    AutoProcessor,
    CLIPImageProcessor,
    CLIPImageProcessorFast,
    LlavaImageProcessor,
    SiglipImageProcessor,
)

from datamodules.encoder import EncoderConfig
from datamodules.llava_assets import load_llava_assets
from datamodules.llava_encoder import LlavaEncoder
from datamodules.sample_encoder import open_encoder
from models.conversation_templates import ConversationTemplate
from sample_loaders.conversation import parse_llava
from sample_loaders.document import DocumentSample
from sample_loaders.errors import BadSample, Reason
from tests.datamodules.llava_assets import SIDE, SLOTS, llama_like_tokenizer, write_llava_assets

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions."
)
IMAGE = "<image>" * SLOTS
# As the models of llava-hf have it, written by us: parts, images first, answers not closed.
OPEN_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] | upper + ': ' }}"
    "{% for c in m['content'] if c['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] + ' ' }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
# As Mistral's and Qwen's are: contents are strings.
STRING_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ '[INST] ' + m['content'] + ' [/INST]' }}{% else %}{{ ' ' + m['content'] + eos_token }}"
    "{% endif %}{% endfor %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_llava_assets(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def make(folder, images):
    def make_encoder(**options) -> LlavaEncoder:
        settings = {"assets": folder, "image_folder": images, "seq_length": 400, **options}
        return LlavaEncoder(EncoderConfig(**settings))

    return make_encoder


def encode(encoder, *texts, **record):
    turns = [
        {"from": "gpt" if number % 2 else "human", "value": text}
        for number, text in enumerate(texts)
    ]
    sample = parse_llava({"conversations": turns, **record}, key="k", source="s")
    encoded = encoder.encode(sample)
    assert encoder.length(sample) == len(encoded.tokens) == len(encoded.labels)
    learnt = encoded.labels[:-1] >= 0
    assert (encoded.labels[:-1][learnt] == encoded.tokens[1:][learnt]).all()
    assert encoded.labels[-1] == -100
    return encoded


def learnt_text(encoder, encoded):
    return encoder.assets.tokenizer.decode(encoded.labels[encoded.labels >= 0]).strip()


def test_tokens_and_pixels_are_those_of_the_processor(make, folder, images):
    encoded = encode(
        make(image_resize="exact"),
        "What is <image>in the image?",
        "A cat.",
        "<image>\n三毛猫ですか?",
        "Yes, 三毛猫です。",
        image=["wide.png", "photo.jpg"],
    )
    processor = AutoProcessor.from_pretrained(folder)
    text = (
        f"<s>{SYSTEM} USER: <image>\nWhat is in the image? ASSISTANT: A cat.</s>"
        "USER: <image>\n三毛猫ですか? ASSISTANT: Yes, 三毛猫です。</s>"
    )
    made = processor(
        text=text,
        images=[Image.open(f"{images}/{name}") for name in ("wide.png", "photo.jpg")],
        add_special_tokens=False,
        return_tensors="np",
    )
    assert encoded.tokens.tolist() == made["input_ids"][0].tolist()
    config = processor.image_processor
    mean, std = (
        np.array(values).reshape(3, 1, 1) for values in (config.image_mean, config.image_std)
    )
    np.testing.assert_allclose(
        (encoded.tiles / 255 - mean) / std, made["pixel_values"], rtol=0, atol=1e-6
    )


def test_answers_are_learnt_with_what_closes_them_and_nothing_else(make):
    encoder = make()
    # The second answer repeats its question and the first answer.
    encoded = encode(
        encoder, "<image>\nA cat?", "A cat.", "ASSISTANT: A cat.", "A cat.", image="one.png"
    )
    assert learnt_text(encoder, encoded) == "A cat.</s> A cat.</s>"
    assert encoder.assets.tokenizer.decode(encoded.tokens).count(IMAGE) == 1


def test_a_system_turn_takes_the_place_of_the_default(make):
    encoder = make()
    turns = [
        {"from": "system", "value": "Read digits."},
        {"from": "human", "value": "Q"},
        {"from": "gpt", "value": "A"},
    ]
    encoded = encoder.encode(parse_llava({"conversations": turns}, key="k", source="s"))
    text = encoder.assets.tokenizer.decode(encoded.tokens)
    assert "Read digits. USER: Q ASSISTANT: A" in text
    assert "curious" not in text
    assert encoded.tiles.shape == (0, 3, SIDE, SIDE)


def test_too_long_conversations_lose_whole_answers_with_their_images(make):
    texts = ("<image>\nQ one", "A one", "<image>\nQ two", "A two")
    whole = encode(make(), *texts, image=["one.png", "wide.png"])
    cut = encode(make(seq_length=len(whole.tokens) - 1), *texts, image=["one.png", "wide.png"])
    first = encode(make(), *texts[:2], image="one.png")
    assert cut.tokens.tolist() == first.tokens.tolist()
    assert (cut.tiles == first.tiles).all()
    with pytest.raises(BadSample, match="4 positions per image") as caught:
        encode(make(seq_length=len(first.tokens) - 1), *texts[:2], image="one.png")
    assert caught.value.reason == Reason.TOO_LONG
    budget = encode(make(max_tiles_per_sample=1), *texts, image=["one.png", "wide.png"])
    assert len(budget.tiles) == 1


def test_documents_keep_images_where_they_stand_and_lose_their_end(make):
    encoder = make()
    sample = DocumentSample(
        key="d", source="s", text="A cat <image>\nsits <image>on it", images=("one.png", "wide.png")
    )
    encoded = encoder.encode(sample)
    assert len(encoded.tiles) == 2
    places = np.flatnonzero(encoded.tokens == encoder.assets.image_token_id)
    assert len(places) == 2 * SLOTS
    assert (np.diff(places) == 1).sum() == 2 * (SLOTS - 1)
    # Cut inside of the second image: it goes as a whole.
    cut = make(seq_length=int(places[SLOTS]) + 2).encode(sample)
    assert len(cut.tokens) == places[SLOTS]
    assert len(cut.tiles) == 1
    assert cut.tokens.tolist() == encoded.tokens[: places[SLOTS]].tolist()


def test_plain_is_the_image_and_its_caption(make):
    encoder = make(conversation_template="plain")
    encoded = encode(encoder, "Describe it.\n<image>", " A cat. ", image="one.png")
    tokenizer = encoder.assets.tokenizer
    wanted = tokenizer("<s><image>A cat.\n", add_special_tokens=False)["input_ids"]
    image = encoder.assets.image_token_id
    assert [int(token) for token in encoded.tokens if token != image] == [
        token for token in wanted if token != image
    ]
    assert (encoded.tokens[1 : 1 + SLOTS] == image).all()
    assert (encoded.labels[:SLOTS] == -100).all()
    assert encoded.labels[SLOTS:-1].tolist() == encoded.tokens[1 + SLOTS :].tolist()
    with pytest.raises(BadSample, match="one question"):
        encode(encoder, "Q", "A", "Q", "A")
    with pytest.raises(BadSample, match="no image in an answer"):
        encode(encoder, "Q", "A <image>", image="one.png")


@pytest.mark.parametrize("way", ["fast", "exact"])
@pytest.mark.parametrize(
    "processor",
    [
        CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}),
        CLIPImageProcessorFast(
            size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
        ),
        LlavaImageProcessor(
            do_pad=True,
            size={"shortest_edge": SIDE},
            crop_size={"height": SIDE, "width": SIDE},
        ),
        SiglipImageProcessor(size={"height": SIDE, "width": SIDE}, resample=3),
    ],
    ids=["clip", "clip_fast", "pad", "siglip"],
)
def test_squares_are_those_of_every_processor(processor, way, tmp_path):
    """Sizes whose surplus is odd, wide and tall; noise, so that a shift by one pixel shows."""
    folder = write_llava_assets(tmp_path / "assets", image_processor=processor)
    images = load_llava_assets(folder).images
    random = np.random.default_rng(0)
    for width, height in ((61, 40), (40, 61), (28, 31), (31, 28), (90, 29), (28, 28)):
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        image = Image.fromarray(pixels)
        square = np.zeros((3, SIDE, SIDE), dtype=np.uint8)
        (images.fill if way == "fast" else images.fill_exactly)(square, image)
        wanted = processor(image, do_rescale=False, do_normalize=False)["pixel_values"][0]
        difference = np.abs(square.astype(int) - np.asarray(wanted).astype(int))
        # Pillow 13 takes the vertical pass first for some sizes, which noise shows in a few pixels.
        assert difference.max() <= (8 if way == "fast" else 0), (width, height)
        assert difference.mean() <= 0.4, (width, height)


def test_precedence_of_templates(tmp_path, images):
    """Given, else the tokenizer's, else an error: the order that NeVA has."""
    none = write_llava_assets(tmp_path / "none", llama_like_tokenizer(None))
    with pytest.raises(ValueError, match="no chat template.*conversation_template"):
        load_llava_assets(none)
    assert load_llava_assets(none, "v1").tokenizer.chat_template
    opened = write_llava_assets(tmp_path / "open", llama_like_tokenizer(OPEN_TEMPLATE))
    with pytest.raises(ValueError, match="must close it with a special token"):
        load_llava_assets(opened)
    with pytest.raises(ValueError, match="'v2' is unknown; allowed are v1, llava_jp"):
        load_llava_assets(opened, "v2")
    encoder = open_encoder(opened, 400, conversation_template="llava_jp")
    sample = parse_llava(
        {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
        key="k",
        source="s",
    )
    text = encoder.assets.tokenizer.decode(encoder.encode(sample).tokens)
    assert text.endswith("ユーザー: Q システム: A</s>")


def test_a_template_of_strings_gets_images_as_text(tmp_path, images):
    given = llama_like_tokenizer(STRING_TEMPLATE + "{% if add_generation_prompt %}{% endif %}")
    folder = write_llava_assets(tmp_path / "strings", given)
    encoder = LlavaEncoder(EncoderConfig(assets=folder, image_folder=images, seq_length=400))
    encoded = encode(encoder, "see <image>\nthis", "A cat", image="one.png")
    assert learnt_text(encoder, encoded) == "A cat</s>"
    tokens = given("<s>[INST] <image>\nsee this [/INST] A cat</s>", add_special_tokens=False)[
        "input_ids"
    ]
    image = encoder.assets.image_token_id
    assert [int(t) for t in encoded.tokens if t != image] == [t for t in tokens if t != image]


def test_a_template_in_the_form_of_neva(make):
    """Its own system text, names of roles and stop string; it has no generation prompt."""
    template = ConversationTemplate(
        chat_template="{{ bos_token }}{% for m in messages %}"
        "{% if m['role'] == 'system' %}{{ m['content'] + ' ' }}"
        "{% elif m['role'] == 'human' %}{{ 'H: ' + m['content'] + ' ' }}"
        "{% else %}{{ 'G: ' + m['content'] + '</s>' }}{% endif %}{% endfor %}",
        system="Be kind.",
        roles=("human", "gpt"),
        stop_string="</s>",
    )
    encoder = make(conversation_template=template)
    encoded = encode(encoder, "<image>\nQ", "A cat", "Q", "A", image="one.png")
    text = encoder.assets.tokenizer.decode([t for t in encoded.tokens if t != 4])
    assert "Be kind. H:" in text
    assert learnt_text(encoder, encoded) == "A cat</s> A</s>"
    with pytest.raises(ValueError, match="stop_string '<end>' must be one of the special tokens"):
        load_llava_assets(
            encoder.config.assets,
            ConversationTemplate(chat_template="x", stop_string="<end>"),
        )


def test_assets_that_do_not_fit_are_refused(tmp_path):
    small = CLIPImageProcessor(size={"shortest_edge": 14}, crop_size={"height": 14, "width": 14})
    with pytest.raises(ValueError, match=r"crop_size=.*14.*, but the model needs .*28"):
        load_llava_assets(write_llava_assets(tmp_path / "small", image_processor=small))
    folder = tmp_path / "other"
    write_llava_assets(folder)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match=r"no preprocessor_config\.json"):
        load_llava_assets(str(folder))


def test_fillers_have_neither_label_nor_image(make):
    filler = make().filler("f")
    assert filler.labels.tolist() == [-100]
    assert filler.tiles.shape == (0, 3, SIDE, SIDE)

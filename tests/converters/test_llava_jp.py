"""The published layout of LLaVA-JP, written by hand, through import, verify and both exports."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    GPT2Config,
    GPT2LMHeadModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from launch.quickstart.parents import train_plain_tokenizer

pytestmark = pytest.mark.usefixtures("nemo")
SIDE, PATCH, WIDTH, SPARE = 42, 14, 48, 60
PATCHES = (SIDE // PATCH) ** 2


def make_tower(kind):
    sizes = {
        "image_size": SIDE,
        "patch_size": PATCH,
        "hidden_size": 32,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
    }
    if kind == "clip":
        return CLIPVisionModel(CLIPVisionConfig(**sizes))
    return SiglipVisionModel(SiglipVisionConfig(**sizes))


class Published(torch.nn.Module):
    """What the published code computes, of transformers' parts."""

    def __init__(self, kind, vocabulary, tied, scales=1):
        super().__init__()
        self.scales = scales
        config = GPT2Config(
            vocab_size=vocabulary,
            n_positions=128,
            n_embd=WIDTH,
            n_layer=2,
            n_head=4,
            n_inner=80,
            activation_function="gelu",
            tie_word_embeddings=tied,
        )
        self.language, self.tower = GPT2LMHeadModel(config), make_tower(kind)
        self.projector = torch.nn.Sequential(
            torch.nn.Linear(32 * scales, WIDTH), torch.nn.GELU(), torch.nn.Linear(WIDTH, WIDTH)
        )
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(0.0, 0.2, generator=generator)

    def forward(self, before, pixels, after):
        """Logits of text, an image in its place, and text."""
        if self.scales == 1:
            image = self.projector(self.features(pixels))
        else:
            image = self.projector(self.multiscale_features(pixels))
        words = self.language.transformer.wte
        embeddings = torch.cat([words(before), image, words(after)], dim=1)
        return self.language(inputs_embeds=embeddings).logits[0]

    def features(self, pixels):
        return self.tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]

    def multiscale_features(self, pixels):
        """The features left over as a grid; of the large image they are averaged to the same."""
        half = torch.nn.functional.interpolate(pixels, size=SIDE, mode="bicubic")
        rows = [
            torch.cat(
                [
                    self._grid(pixels[..., top : top + SIDE, left : left + SIDE])
                    for left in (0, SIDE)
                ],
                dim=3,
            )
            for top in (0, SIDE)
        ]
        small = self._grid(half)
        large = torch.nn.functional.adaptive_avg_pool2d(torch.cat(rows, dim=2), small.shape[2:])
        return torch.cat([large, small], dim=1).flatten(2).transpose(1, 2)

    def _grid(self, pixels):
        features = self.features(pixels).transpose(1, 2)
        rows = int(features.shape[-1] ** 0.5)
        return features.unflatten(2, (rows, features.shape[-1] // rows))


@pytest.fixture
def write(tmp_path):
    def write(kind="siglip", tied=True, copy=True, num_scales=1, **changes):
        tokenizer = train_plain_tokenizer("llava_jp")
        vocabulary = len(tokenizer) + SPARE
        model = Published(kind, vocabulary, tied, num_scales).eval()
        tensors = {
            name: tensor
            for name, tensor in model.language.state_dict().items()
            if name.startswith("transformer.") or (copy and name == "lm_head.weight")
        }
        tensors |= {
            f"model.vision_tower.vision_tower.{name}": tensor
            for name, tensor in model.tower.state_dict().items()
        }
        tensors |= {
            f"model.mm_projector.{name}": tensor
            for name, tensor in model.projector.state_dict().items()
        }
        # Older files hold the causal mask.
        mask = torch.ones(1, 1, 128, 128, dtype=torch.uint8)
        tensors["transformer.h.0.attn.bias"] = mask
        tensors["transformer.h.1.attn.masked_bias"] = torch.tensor(-1e4)
        folder = tmp_path / "published"
        folder.mkdir()
        save_file(
            {name: tensor.clone() for name, tensor in tensors.items()},
            folder / "model.safetensors",
            metadata={"format": "pt"},
        )
        content = model.language.config.to_dict() | {
            "model_type": "llava-jp",
            "architectures": ["LlavaGpt2ForCausalLM"],
            "mm_hidden_size": 32 * num_scales,
            "scales": [1.0, 0.5] if num_scales > 1 else None,
            "mm_projector_type": "mlp2x_gelu",
            "mm_vision_select_feature": "patch",
            "mm_vision_select_layer": -2,
            "mm_vision_tower": f"somewhere/{kind}",
            "image_aspect_ratio": "square",
            "tokenizer_model_max_length": 1532,
            "tie_word_embeddings": tied,
            "vision_config": model.tower.config.to_dict(),
        }
        content |= changes
        (folder / "config.json").write_text(json.dumps(content))
        tokenizer.save_pretrained(folder)
        return folder, model

    return write


def run_megatron(checkpoint, tokens, tiles):
    from converters.checkpoint import load_model, single_process

    with single_process(), torch.no_grad():
        _, module = load_model(checkpoint, torch.float32)
        places = torch.arange(len(tokens)).unsqueeze(0)
        return module.eval()(tokens.unsqueeze(0), places, tiles)[0]


@pytest.mark.parametrize(
    ("kind", "tied", "copy", "scales"),
    [
        ("siglip", True, True, 1),
        ("siglip", True, False, 1),
        ("clip", False, True, 1),
        ("siglip", True, True, 2),
    ],
)
def test_logits_and_bits_of_the_published_layout(write, kind, tied, copy, scales, tmp_path):
    from converters.export_hf import export_checkpoint
    from converters.import_hf import import_checkpoint
    from converters.verify import verify_checkpoint

    folder, published = write(kind, tied, copy, scales)
    import_checkpoint("llava_jp", folder, tmp_path / "nemo")
    # 728 of 729 patches with SigLIP, all 576 with CLIP: here 8 and 9.
    slots = PATCHES - (kind == "siglip")
    generator = torch.Generator().manual_seed(1)
    text = torch.randint(0, 250, (1, 12), generator=generator)
    shape = (1, 3, SIDE * scales, SIDE * scales)
    tiles = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    processor = AutoProcessor.from_pretrained(tmp_path / "nemo/context/assets")
    images = processor.image_processor
    mean, std = (torch.tensor(one).view(3, 1, 1) for one in (images.image_mean, images.image_std))
    with torch.no_grad():
        wanted = published(text[:, :5], (tiles / 255 - mean) / std, text[:, 5:])
    image = torch.full((slots,), processor.image_token_id)
    tokens = torch.cat([text[0, :5], image, text[0, 5:]])
    found = run_megatron(tmp_path / "nemo", tokens, tiles)
    assert wanted.abs().max() > 1
    assert (found - wanted).abs().max() <= 1e-4

    export_checkpoint(tmp_path / "nemo", tmp_path / "again", layout="llava_jp")
    before = load_file(folder / "model.safetensors")
    after = load_file(tmp_path / "again" / "model.safetensors")
    before = {
        name: one
        for name, one in before.items()
        if not name.endswith((".bias", "_bias")) or one.dtype == torch.float32 and one.ndim == 1
    }
    before.setdefault("lm_head.weight", before["transformer.wte.weight"])
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    content = json.loads((tmp_path / "again" / "config.json").read_text())
    original = json.loads((folder / "config.json").read_text())
    for name in (
        *("model_type", "architectures", "n_embd", "n_layer", "n_inner", "vocab_size"),
        *("mm_vision_tower", "mm_projector_type", "mm_vision_select_feature", "mm_hidden_size"),
        *("mm_vision_select_layer", "activation_function", "tie_word_embeddings", "scales"),
    ):
        assert content[name] == original[name], name

    for directory in (folder, tmp_path / "again"):
        report = verify_checkpoint(directory, tmp_path / "nemo", logits=False)
        assert report.passed, report
    with pytest.raises(ValueError, match="in the layout of llava_jp, which transformers cannot"):
        verify_checkpoint(folder, tmp_path / "nemo")

    # What was exported is read again, and what transformers loads is the same model.
    import_checkpoint("llava_jp", tmp_path / "again", tmp_path / "second")
    export_checkpoint(tmp_path / "second", tmp_path / "hf")
    assert verify_checkpoint(tmp_path / "hf", tmp_path / "nemo").passed
    model = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "hf", trust_remote_code=scales > 1
    ).eval()
    with torch.no_grad():
        logits = model(
            input_ids=tokens.unsqueeze(0), pixel_values=(tiles / 255 - mean) / std
        ).logits[0]
    assert (logits - wanted).abs().max() <= 1e-4


@pytest.mark.parametrize(("kind", "scales"), [("clip", 1), ("siglip", 2)])
def test_the_processor_makes_as_many_slots_and_squares_of_whole_images(
    write, kind, scales, tmp_path
):
    from PIL import Image

    from converters.import_hf import import_checkpoint
    from datamodules.images import ImageFolder
    from datamodules.sample_encoder import open_encoder
    from sample_loaders.conversation import parse_llava

    folder, _ = write(kind, num_scales=scales)
    slots = PATCHES - (kind == "siglip")
    import_checkpoint("llava_jp", folder, tmp_path / "nemo")
    assets = tmp_path / "nemo/context/assets"
    Image.new("RGB", (90, 30), "red").save(tmp_path / "wide.png")
    encoder = open_encoder(str(assets), 400, image_resize="exact")
    record = {
        "image": "wide.png",
        "conversations": [
            {"from": "ユーザー", "value": "<image>\n何色?"},
            {"from": "システム", "value": "赤"},
        ],
    }
    sample = parse_llava(record, key="k", source="s")
    encoded = encoder.encode(sample, ImageFolder(tmp_path))
    tokenizer = encoder.assets.tokenizer
    text = tokenizer.decode(encoded.tokens)
    assert "ユーザー: </s><image>" in text
    assert text.endswith("システム: 赤</s>")
    assert (encoded.tokens == encoder.assets.image_token_id).sum() == slots
    assert encoded.tiles[0].shape == (3, SIDE * scales, SIDE * scales)
    assert (encoded.tiles[0].reshape(3, -1).max(axis=1) == [255, 0, 0]).all()
    # transformers' processor makes the same of it.
    processor = AutoProcessor.from_pretrained(assets)
    inputs = processor(
        text="<image>", images=Image.open(tmp_path / "wide.png"), return_tensors="pt"
    )
    assert (inputs["input_ids"] == processor.image_token_id).sum() == slots
    assert inputs["pixel_values"].shape == (1, 3, SIDE * scales, SIDE * scales)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "clip", "num_scales": 2}, r"scales: \[1.0, 0.5\] do not go with CLIP in the"),
        ({"scales": [1.0, 0.25]}, r"scales: \[1.0, 0.25\] .* is not supported"),
        ({"mm_projector_type": "ldpnetv2"}, "mm_projector_type: 'ldpnetv2'"),
        ({"vision_config": None}, "mm_vision_tower: 'somewhere/siglip' is not known"),
        ({"vocab_size": 376}, "none of which is left for <image>|do not fit|config.json"),
    ],
)
def test_what_is_not_supported_is_refused(write, change, message, tmp_path):
    from converters.import_hf import import_checkpoint

    folder, _ = write(**change)
    with pytest.raises(ValueError, match=message):
        import_checkpoint("llava_jp", folder, tmp_path / "nemo")
    assert not (tmp_path / "nemo").exists()


def test_the_published_towers_are_known_by_their_names():
    from converters.llava_jp import read_llava_jp_config
    from models.llava.description import input_side, slots_per_image

    text = {"n_embd": 2048, "n_layer": 24, "n_head": 16, "vocab_size": 50688}
    common = {"mm_projector_type": "mlp2x_gelu", "mm_vision_select_feature": "patch"}
    for name, side, slots in (
        ("openai/clip-vit-large-patch14-336", 336, 576),
        ("google/siglip-so400m-patch14-384", 384, 728),
    ):
        content = {**text, **common, "mm_vision_tower": name}
        config = read_llava_jp_config(content, 50687)
        assert (slots_per_image(config), input_side(config)) == (slots, side)
    # v1.1: as many positions of images of twice the size.
    config = read_llava_jp_config({**content, "scales": [1.0, 0.5]}, 50687)
    assert (slots_per_image(config), input_side(config)) == (728, 768)

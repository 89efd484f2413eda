"""LLaVA put together of two parents, and templates that replace the models' own."""

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoProcessor,
    CLIPConfig,
    CLIPModel,
    GPT2LMHeadModel,
    LlavaForConditionalGeneration,
)

from launch.quickstart.parents import (
    train_plain_tokenizer,
    write_clip,
    write_gpt2,
    write_llama,
    write_siglip,
)

pytestmark = pytest.mark.usefixtures("nemo")


@pytest.fixture(scope="module")
def parents(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parents")
    write_clip(folder / "clip")
    write_siglip(folder / "siglip", image_size=84)
    write_llama(folder / "llama", train_plain_tokenizer("v1"))
    write_gpt2(folder / "gpt2", train_plain_tokenizer("llava_jp"))
    return folder


def put_together(parents, llm, vision, out, **rules):
    from converters.assemble import assemble
    from converters.llava_assembly import LlavaAssembly

    return assemble(parents / llm, parents / vision, out, LlavaAssembly(**rules))


def test_the_parents_are_kept_and_the_whole_is_what_transformers_loads(parents, tmp_path):
    from converters.export_hf import export_checkpoint
    from converters.verify import verify_checkpoint

    figures = put_together(parents, "llama", "clip", tmp_path / "nemo", conversation_template="v1")
    export_checkpoint(tmp_path / "nemo", tmp_path / "hf")
    assert verify_checkpoint(tmp_path / "hf", tmp_path / "nemo").passed
    out = load_file(tmp_path / "hf" / "model.safetensors")
    for name, tensor in load_file(parents / "clip" / "model.safetensors").items():
        assert torch.equal(out[f"vision_tower.{name}"], tensor), name
    llm = load_file(parents / "llama" / "model.safetensors")
    for name, tensor in llm.items():
        found = out[f"language_model.{name}"]
        rows = len(tensor)  # of a table, whose new rows come behind
        assert torch.equal(found[:rows], tensor), name
    table = out["language_model.model.embed_tokens.weight"]
    known = len(llm["model.embed_tokens.weight"])
    assert figures["vocabulary"] == len(table) == known + 2  # <image> and <pad>
    for row in range(known, len(table)):
        assert torch.allclose(table[row], table[:row].mean(dim=0), atol=1e-7)

    processor = AutoProcessor.from_pretrained(tmp_path / "hf")
    assert processor.tokenizer.pad_token == "<pad>"
    assert processor.num_additional_image_tokens == 1
    text = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "何?"}]}],
        add_generation_prompt=True,
    )
    assert text.startswith("<s>A chat between a curious user")
    assert text.endswith("USER: <image>\n何? ASSISTANT:")
    description = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert description["image_token_index"] == known
    assert description["architectures"] == ["LlavaForConditionalGeneration"]


def test_only_the_tower_of_a_whole_clip_is_taken(parents, tmp_path):
    """As the published directories are: with a text model, and a vision_config in config.json."""
    from converters.checkpoint import read_checkpoint

    vision = json.loads((parents / "clip" / "config.json").read_text())
    config = CLIPConfig(
        vision_config={name: vision[name] for name in vision if name != "model_type"},
        text_config={"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
        projection_dim=16,
    )
    model = CLIPModel(config)
    model.vision_model.load_state_dict(
        {
            name.removeprefix("vision_model."): tensor
            for name, tensor in load_file(parents / "clip" / "model.safetensors").items()
        }
    )
    (tmp_path / "llama").symlink_to(parents / "llama")
    (tmp_path / "clip").symlink_to(parents / "clip")
    model.save_pretrained(tmp_path / "whole")
    weights = load_file(tmp_path / "whole" / "model.safetensors")
    weights["vision_model.embeddings.position_ids"] = torch.arange(37)
    save_file(weights, tmp_path / "whole" / "model.safetensors", metadata={"format": "pt"})
    for name in ("clip", "whole"):
        put_together(tmp_path, "llama", name, tmp_path / f"of_{name}", conversation_template="v1")
    of_tower, of_whole = (read_checkpoint(tmp_path / f"of_{n}")[1] for n in ("clip", "whole"))
    assert of_tower.keys() == of_whole.keys()
    assert all(torch.equal(of_tower[name], of_whole[name]) for name in of_tower)


@pytest.mark.parametrize("tied", [True, False])
def test_a_gpt2_with_and_without_an_output_layer_of_its_own(parents, tied, tmp_path):
    from converters.export_hf import export_checkpoint
    from converters.verify import verify_checkpoint

    model = GPT2LMHeadModel.from_pretrained(parents / "gpt2")
    if not tied:
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(torch.randn(model.lm_head.weight.shape))
    (tmp_path / "siglip").symlink_to(parents / "siglip")
    model.save_pretrained(tmp_path / "gpt2")
    train_plain_tokenizer("llava_jp").save_pretrained(tmp_path / "gpt2")
    put_together(tmp_path, "gpt2", "siglip", tmp_path / "nemo", conversation_template="llava_jp")
    export_checkpoint(tmp_path / "nemo", tmp_path / "hf")
    assert verify_checkpoint(tmp_path / "hf", tmp_path / "nemo").passed
    found = LlavaForConditionalGeneration.from_pretrained(tmp_path / "hf").eval()
    text = torch.tensor([[5, 9, 300, 17]])
    with torch.no_grad():
        wanted = model.eval()(text).logits
        logits = found(input_ids=text).logits
    assert (logits[..., : wanted.shape[-1]] - wanted).abs().max() <= 1e-5
    # All 36 patches: nothing of SigLIP is left out in a new model.
    assert found.config.vision_feature_select_strategy == "full"


def test_padding_and_templates_are_what_was_asked_for(parents, tmp_path):
    put_together(
        parents,
        "llama",
        "clip",
        tmp_path / "nemo",
        conversation_template="v1",
        image_aspect_ratio="pad",
    )
    processor = AutoProcessor.from_pretrained(tmp_path / "nemo/context/assets")
    assert processor.image_processor.do_pad is True
    assert dict(processor.image_processor.crop_size) == {"height": 84, "width": 84}


@pytest.mark.parametrize("vision", ["clip", "siglip"])
def test_two_scales_have_the_positions_of_one(parents, vision, tmp_path):
    from nemo.lightning import io

    from converters.export_hf import export_checkpoint
    from converters.verify import verify_checkpoint
    from launch.__main__ import main

    arguments = ["assemble", "--family", "llava", "--llm", str(parents / "llama")]
    arguments += ["--vision", str(parents / vision), "--conversation-template", "v1"]
    out = str(tmp_path / "nemo")
    assert main([*arguments, "--image-scales", "1.0,0.5", "--out", out]) == 0
    export_checkpoint(out, tmp_path / "hf")
    for layers in (False, True):
        assert verify_checkpoint(tmp_path / "hf", out, layers=layers).passed
    processor = AutoProcessor.from_pretrained(tmp_path / "hf")
    image = Image.new("RGB", (200, 100))
    inputs = processor(text="<image>", images=image, return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 168, 168)
    assert (inputs["input_ids"] == processor.image_token_id).sum() == 36
    # The projector takes the channels of both.
    weights = load_file(tmp_path / "hf" / "model.safetensors")
    assert weights["multi_modal_projector.linear_1.weight"].shape == (128, 2 * 96)
    # What NeMo reads, and a recipe that says nothing of scales, have them from the assets.
    recipe = io.load_context(f"{out}/context", subpath="model.config")
    recipe.resolve_assets()
    assert recipe.vision_transformer_config.image_scales == (1.0, 0.5)
    # Two scales where the assets have one are refused.
    arguments[-1:] = ["v1", "--out", str(tmp_path / "one")]
    assert main(arguments) == 0
    recipe.assets = str(tmp_path / "one")
    with pytest.raises(ValueError, match=r"^image_scales: \[1.0, 0.5\] of this recipe do not go"):
        recipe.resolve_assets()


@pytest.mark.parametrize(
    ("llm", "vision", "rules", "message"),
    [
        ("llama", "clip", {}, "has no chat template; .* conversation_template .v1, llava_jp"),
        ("llama", "clip", {"conversation_template": "v2"}, "'v2' is unknown; allowed are v1"),
        ("clip", "llama", {"conversation_template": "v1"}, "llm: .* of type 'clip_vision_model'"),
        (
            "llama",
            "siglip",
            {"conversation_template": "v1", "image_aspect_ratio": "pad"},
            "image_aspect_ratio: 'pad' is for CLIP",
        ),
    ],
)
def test_what_does_not_suit_is_refused(parents, llm, vision, rules, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        put_together(parents, llm, vision, tmp_path / "nemo", **rules)
    assert not (tmp_path / "nemo").exists()


def test_options_of_another_family_are_refused(parents, tmp_path, capsys):
    from launch.__main__ import main

    arguments = ["assemble", "--llm", str(parents / "llama"), "--vision", str(parents / "clip")]
    arguments += ["--out", str(tmp_path / "nemo")]
    assert main([*arguments, "--family", "llava", "--max-tiles", "4"]) == 2
    assert "max_tiles: 4 is not for llava; its options are conversation_template" in (
        capsys.readouterr().err
    )
    assert main([*arguments, "--family", "nvila", "--conversation-template", "v1"]) == 2
    assert "conversation_template: 'v1' is not for nvila" in capsys.readouterr().err
    assert main([*arguments, "--family", "llava", "--conversation-template", "v1"]) == 0


def test_import_with_another_template(tmp_path):
    from converters.export_hf import export_checkpoint
    from converters.import_hf import import_checkpoint
    from launch.quickstart.llava_parent import train_llava_tokenizer, write_llava

    write_llava(tmp_path / "hf", train_llava_tokenizer())
    import_checkpoint("llava", tmp_path / "hf", tmp_path / "nemo", conversation_template="v1")
    export_checkpoint(tmp_path / "nemo", tmp_path / "out")
    for reader in (AutoProcessor.from_pretrained(tmp_path / "out"),):
        assert "USER" in reader.chat_template
        assert "USER" in reader.tokenizer.chat_template
    with pytest.raises(ValueError, match="conversation_template: 'v7' is unknown"):
        import_checkpoint("llava", tmp_path / "hf", tmp_path / "b", conversation_template="v7")


def test_an_original_intern_vit(parents, tmp_path):
    """As OpenGVLab publishes it: names of its own, query, key and value as one tensor."""
    from transformers import InternVLVisionConfig, InternVLVisionModel

    from converters.export_hf import export_checkpoint
    from converters.verify import verify_checkpoint

    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 48,
    }
    model = InternVLVisionModel(
        InternVLVisionConfig(**sizes, attention_bias=True, image_size=56, patch_size=14)
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.2, generator=generator)
    weights = {}
    for name, tensor in model.state_dict().items():
        for own, original in (
            ("embeddings.cls_token", "embeddings.class_embedding"),
            ("embeddings.position_embeddings", "embeddings.position_embedding"),
            ("embeddings.patch_embeddings.projection.", "embeddings.patch_embedding."),
            ("encoder.layer.", "encoder.layers."),
            ("layernorm_before", "norm1"),
            ("layernorm_after", "norm2"),
            ("attention.projection_layer", "attn.proj"),
            ("lambda_", "ls"),
        ):
            name = name.replace(own, original)
        weights[name] = tensor.clone()
    for layer in range(3):
        for kind in ("weight", "bias"):
            place = f"encoder.layers.{layer}."
            parts = [weights.pop(f"{place}attention.{one}_proj.{kind}") for one in "qkv"]
            weights[f"{place}attn.qkv.{kind}"] = torch.cat(parts)
    original = tmp_path / "original"
    original.mkdir()
    save_file(weights, original / "model.safetensors", metadata={"format": "pt"})
    content = sizes | {"model_type": "intern_vit_6b", "qkv_bias": True, "qk_normalization": False}
    content |= {"norm_type": "layer_norm", "layer_norm_eps": 1e-6, "hidden_act": "gelu"}
    content |= {"image_size": 56, "patch_size": 14}
    (original / "config.json").write_text(json.dumps(content))
    (tmp_path / "llama").symlink_to(parents / "llama")
    put_together(tmp_path, "llama", "original", tmp_path / "nemo", conversation_template="v1")
    export_checkpoint(tmp_path / "nemo", tmp_path / "hf")
    assert verify_checkpoint(tmp_path / "hf", tmp_path / "nemo").passed
    found = LlavaForConditionalGeneration.from_pretrained(tmp_path / "hf").model.vision_tower
    pixels = torch.randn(2, 3, 56, 56, generator=generator)
    with torch.no_grad():
        wanted = model.eval()(pixels).last_hidden_state
        assert (found.eval()(pixels).last_hidden_state - wanted).abs().max() <= 1e-6
    processor = AutoProcessor.from_pretrained(tmp_path / "hf")
    assert processor.image_processor.image_mean == [0.485, 0.456, 0.406]
    content |= {"qk_normalization": True}
    (original / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="use_qk_norm: True of the vision tower"):
        put_together(tmp_path, "llama", "original", tmp_path / "b", conversation_template="v1")

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Qwen2ForCausalLM, SiglipVisionModel

from models.hf_code.configuration_nvila_lite import NVILALiteConfig
from models.hf_code.modeling_nvila_lite import NVILALiteForConditionalGeneration
from models.hf_code.projector_nvila_lite import NVILALiteProjector, SpaceToChannel

TYPES = ["mlp_downsample_2x2_fix", "mlp_downsample_3x3_fix"]


def noise_image(columns, rows=1, seed=0):
    shape = (56 * rows, 56 * columns, 3)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def prompts(processor, images):
    messages = [
        [
            {
                "role": "user",
                "content": [{"type": "image", "image": image}, {"type": "text", "text": "a"}],
            }
        ]
        for image in images
    ]
    return processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True
    )


def merged_one_by_one(features, side, factor):
    """The published order, written with loops: [row][column][channel], zeros bottom and right."""
    tiles, _, width = features.shape
    merged = int(np.ceil(side / factor))
    out = np.zeros((tiles, merged * merged, factor * factor * width), features.dtype)
    for row in range(side):
        for column in range(side):
            token = (row // factor) * merged + column // factor
            offset = ((row % factor) * factor + column % factor) * width
            out[:, token, offset : offset + width] = features[:, row * side + column]
    return out


@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("side", [4, 5, 7, 9, 27, 32])
def test_space_to_channel(side, factor):
    features = np.random.default_rng(side).normal(size=(2, side * side, 3)).astype(np.float32)
    found = SpaceToChannel(factor)(torch.from_numpy(features)).numpy()
    np.testing.assert_array_equal(found, merged_one_by_one(features, side, factor))


def test_32_becomes_33_for_blocks_of_three():
    found = SpaceToChannel(3)(torch.ones(1, 1024, 2))
    assert found.shape == (1, 121, 18)
    corner = found[0, -1].view(3, 3, 2)
    assert corner[2].abs().sum() == corner[:, 2].abs().sum() == 0
    assert corner[:2, :2].min() == 1


@pytest.mark.parametrize(
    ("factor", "text_width", "parameters"),
    [
        (2, 896, 4_942_592),
        (2, 1536, 9_449_472),
        (2, 5120, 49_826_816),
        (3, 896, 39_764_096),
        (3, 1536, 43_533_696),
        (3, 5120, 79_782_272),
    ],
)
def test_projector_has_the_published_size(factor, text_width, parameters):
    with torch.device("meta"):
        projector = NVILALiteProjector(1152, text_width, factor)
    assert sum(parameter.numel() for parameter in projector.parameters()) == parameters


def test_projector_has_the_published_layers():
    with torch.device("meta"):
        two = NVILALiteProjector(1152, 896, 2).state_dict()
        three = NVILALiteProjector(1152, 3584, 3).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in two.items()} == {
        "layers.1.weight": (4608,),
        "layers.1.bias": (4608,),
        "layers.2.weight": (896, 4608),
        "layers.2.bias": (896,),
        "layers.4.weight": (896, 896),
        "layers.4.bias": (896,),
    }
    assert {name: tuple(tensor.shape) for name, tensor in three.items()} == {
        "layers.1.weight": (10368,),
        "layers.1.bias": (10368,),
        "layers.2.weight": (3456, 10368),
        "layers.2.bias": (3456,),
        "layers.4.weight": (3456,),
        "layers.4.bias": (3456,),
        "layers.5.weight": (3584, 3456),
        "layers.5.bias": (3584,),
        "layers.7.weight": (3584, 3584),
        "layers.7.bias": (3584,),
    }
    with torch.device("meta"):
        norms = [NVILALiteProjector(1152, 896, 3).layers[index] for index in (1, 4)]
    assert [norm.eps for norm in norms] == [1e-5, 1e-5]


@pytest.mark.parametrize("projector_type", TYPES)
def test_projector_against_a_plain_formula(make_nano_model, projector_type):
    from math import erf

    model = make_nano_model(projector_type)
    state = {
        name: tensor.double().numpy() for name, tensor in model.mm_projector.state_dict().items()
    }

    def norm(x, index):
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return scaled * state[f"layers.{index}.weight"] + state[f"layers.{index}.bias"]

    def linear(x, index):
        return x @ state[f"layers.{index}.weight"].T + state[f"layers.{index}.bias"]

    def gelu(x):
        return x * 0.5 * (1 + np.vectorize(erf)(x / np.sqrt(2)))

    features = np.random.default_rng(1).normal(size=(2, 16, 48))
    if projector_type == TYPES[0]:
        hidden = linear(norm(merged_one_by_one(features, 4, 2), 1), 2)
        expected = linear(gelu(hidden), 4)
    else:
        hidden = linear(norm(merged_one_by_one(features, 4, 3), 1), 2)
        expected = linear(gelu(linear(norm(gelu(hidden), 4), 5)), 7)
    found = model.mm_projector(torch.from_numpy(features).float())
    np.testing.assert_allclose(found.detach().numpy(), expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("layer", [-2, -1, 1, 0])
def test_vision_features_are_the_hidden_states_of_siglip(make_nano_model, layer):
    model = make_nano_model(vision_feature_layer=layer)
    siglip = SiglipVisionModel(model.config.vision_config).eval()
    siglip.load_state_dict(model.vision_tower.state_dict())
    pixels = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = siglip(pixels, output_hidden_states=True).hidden_states[layer]
        assert torch.equal(model.get_vision_features(pixels), expected)


def test_blocks_after_the_features_are_not_run(make_nano_model):
    model = make_nano_model()
    model.vision_tower.vision_model.encoder.layers[-1].forward = None  # would fail if called
    assert model.get_vision_features(torch.zeros(1, 3, 56, 56)).shape == (1, 16, 48)


@pytest.mark.parametrize("tied", [True, False])
def test_text_logits_are_those_of_qwen2(make_nano_model, nano_tokenizer, tied):
    model = make_nano_model(tied=tied)
    qwen = Qwen2ForCausalLM(model.config.text_config).eval()
    qwen.load_state_dict(model.llm.state_dict())
    ids = torch.tensor([nano_tokenizer.encode("数字を左から順に読んでください。")])
    gap = torch.arange(ids.shape[1])[None] + 5 * (torch.arange(ids.shape[1])[None] > 2)
    with torch.no_grad():
        expected, found = qwen(ids, labels=ids), model(ids, labels=ids)
        assert torch.equal(found.logits, expected.logits)
        assert found.loss == expected.loss
        expected, found = qwen(ids, position_ids=gap), model(ids, position_ids=gap, labels=ids)
        assert torch.equal(found.logits, expected.logits)


def test_image_features_stand_at_their_positions(make_nano_model, nano_processor):
    model = make_nano_model()
    inputs = prompts(nano_processor, [noise_image(2), noise_image(1, seed=1)])
    is_image = inputs["input_ids"] == model.config.image_token_id
    with torch.no_grad():
        embeddings = model.get_input_embeddings()(inputs["input_ids"])
        features = model.get_image_features(inputs["pixel_values"])
        assert features.shape == (4, 4, 64)  # 2 tiles and a thumbnail, and 1 tile
        embeddings[is_image] = features.reshape(-1, 64)
        mask = inputs["attention_mask"]
        expected = model.llm(inputs_embeds=embeddings, attention_mask=mask).logits
        found = model(**inputs).logits
        swapped = inputs | {"pixel_values": inputs["pixel_values"].flip(0)}
        assert torch.equal(found, expected)
        assert (model(**swapped).logits - found).abs().max() > 0.01


def test_tiles_and_positions_must_match(make_nano_model, nano_processor):
    model = make_nano_model()
    inputs = prompts(nano_processor, [noise_image(1)])
    with pytest.raises(ValueError, match="4 image positions for 8 image features"):
        model(inputs["input_ids"], inputs["pixel_values"].repeat(2, 1, 1, 1))
    with pytest.raises(ValueError, match="4 image positions without pixel_values"):
        model(inputs["input_ids"])
    with pytest.raises(ValueError, match="pixel_values must come with input_ids"):
        model(pixel_values=inputs["pixel_values"])


def greedy_without_cache(model, inputs, steps):
    """The definition of greedy decoding: a full forward pass for every token."""
    ids = inputs["input_ids"]
    for _ in range(steps):
        with torch.no_grad():
            logits = model(ids, inputs["pixel_values"]).logits[:, -1]
        logits[:, model.config.image_token_id] = -torch.inf
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
    return ids[:, inputs["input_ids"].shape[1] :]


OPTIONS = {"do_sample": False, "max_new_tokens": 10, "pad_token_id": 0}


@pytest.fixture(scope="module")
def varied_model(make_nano_model):
    model = make_nano_model(tied=False)
    model.generation_config.suppress_tokens = [model.config.image_token_id]
    return model


def test_generation_with_cache_is_greedy_decoding(varied_model, nano_processor):
    answers = set()
    for seed in range(3):
        inputs = prompts(nano_processor, [noise_image(seed + 1, seed=seed)])
        expected = greedy_without_cache(varied_model, inputs, 10)
        found = varied_model.generate(**inputs, **OPTIONS)[:, inputs["input_ids"].shape[1] :]
        assert torch.equal(found, expected)
        answers.add(tuple(expected[0].tolist()))
    # Constant answers would prove little.
    assert len(answers) == 3
    assert len({token for answer in answers for token in answer}) > 10


def test_batched_generation_is_that_of_one_by_one(varied_model, nano_processor):
    images = [noise_image(1, seed=7), noise_image(4, seed=8), noise_image(2, seed=9)]
    inputs = prompts(nano_processor, images)
    assert inputs["attention_mask"].sum(1).unique().numel() == 3
    found = varied_model.generate(**inputs, **OPTIONS)[:, inputs["input_ids"].shape[1] :]
    for row, image in zip(found, images, strict=True):
        expected = greedy_without_cache(varied_model, prompts(nano_processor, [image]), 10)
        assert row.tolist() == expected[0].tolist()


def test_the_vision_tower_runs_once_for_an_answer(varied_model, nano_processor, monkeypatch):
    calls = []
    features = varied_model.get_image_features
    monkeypatch.setattr(
        varied_model, "get_image_features", lambda pixels: calls.append(1) or features(pixels)
    )
    varied_model.generate(**prompts(nano_processor, [noise_image(1)]), **OPTIONS)
    assert len(calls) == 1


@pytest.mark.parametrize("tied", [True, False])
def test_saved_weights_come_back(make_nano_model, tmp_path, tied):
    from safetensors.torch import load_file

    model = make_nano_model("mlp_downsample_3x3_fix", tied=tied)
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert ("llm.lm_head.weight" in stored) is not tied
    prefixes = {name.split(".")[0] + "." + name.split(".")[1] for name in stored}
    assert prefixes - {"llm.lm_head"} == {
        "llm.model",
        "mm_projector.layers",
        "vision_tower.vision_model",
    }
    loaded, report = NVILALiteForConditionalGeneration.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(report.values())
    for part in ("text_config", "vision_config"):
        kept, read = (
            getattr(config, part).to_diff_dict() for config in (model.config, loaded.config)
        )
        assert kept.items() <= read.items()
    assert (
        loaded.config.tie_word_embeddings is loaded.config.text_config.tie_word_embeddings is tied
    )
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    is_same = loaded.llm.lm_head.weight is loaded.llm.model.embed_tokens.weight
    assert is_same is tied


def test_sdpa_is_the_default(make_nano_model):
    model = make_nano_model()
    for part in (model, model.llm, model.vision_tower):
        assert part.config._attn_implementation == "sdpa"


def test_gradients_reach_what_is_used_and_only_that(make_nano_model, nano_processor):
    model = make_nano_model()
    inputs = prompts(nano_processor, [noise_image(1)])
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    vision = "vision_tower.vision_model."
    assert without
    assert all(
        name.startswith((f"{vision}encoder.layers.2.", f"{vision}post_layernorm."))
        for name in without
    )


def test_real_sizes_have_the_published_parameters():
    config = NVILALiteConfig(
        text_config={
            "vocab_size": 151_670,
            "hidden_size": 896,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "intermediate_size": 4864,
            "tie_word_embeddings": True,
        },
        vision_config={
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "image_size": 448,
            "patch_size": 14,
        },
        image_token_id=151_666,
        mm_projector_type="mlp_downsample_2x2_fix",
    )
    with torch.device("meta"):
        model = NVILALiteForConditionalGeneration(config)
    assert sum(p.numel() for p in model.vision_tower.parameters()) == 413_327_088
    assert config.tokens_per_tile == 256
    assert config.vision_layers_used == 26


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mm_projector_type": "linear"}, "mm_projector_type='linear' is unknown"),
        ({"vision_feature_layer": -30}, "vision_feature_layer=-30 does not exist"),
    ],
)
def test_wrong_configurations(changes, message):
    with pytest.raises(ValueError, match=message):
        NVILALiteConfig(**changes)


def test_the_image_token_must_be_in_the_vocabulary(make_nano_config):
    config = make_nano_config()
    config.image_token_id = config.text_config.vocab_size
    with pytest.raises(ValueError, match="is not in the vocabulary"):
        NVILALiteForConditionalGeneration(config)

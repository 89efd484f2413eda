"""The Megatron-Core model against the Hugging Face one: features, logits, loss, every gradient."""

from dataclasses import fields

import pytest
import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration

from models.hf_code.configuration_neva_llava import NevaLlavaConfig
from models.hf_code.modeling_neva_llava import NevaLlavaForConditionalGeneration

pytestmark = pytest.mark.usefixtures("single_process")
VOCABULARY, IMAGE, SIDE, SLOTS = 203, 200, 28, 4


MEANS = {"clip": (0.48145466, 0.4578275, 0.40821073), "siglip": (0.5, 0.5, 0.5)}
DEVIATIONS = {"clip": (0.26862954, 0.26130258, 0.27577711), "siglip": (0.5, 0.5, 0.5)}
MEANS["internvl"], DEVIATIONS["internvl"] = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def make_reference(
    vision="clip", select="default", head=False, projector=None, scales=None, hf=False, **text
):
    neva = {} if projector is None else {"mm_projector_type": projector}
    if scales:
        neva = {"mm_projector_type": projector or "mlp2x_gelu", "image_scales": scales}
    config = (NevaLlavaConfig if neva else LlavaConfig)(
        **neva,
        vision_config={
            "model_type": "internvl_vision" if vision == "internvl" else f"{vision}_vision_model",
            "image_size": SIDE,
            "patch_size": 14,
            "hidden_size": 32,
            "num_attention_heads": 2,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
        }
        | ({"attention_bias": True, "use_mean_pooling": head} if vision == "internvl" else {})
        | ({"vision_use_head": head} if vision == "siglip" else {}),
        text_config={
            "model_type": "llama",
            "vocab_size": VOCABULARY,
            "hidden_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 80,
            "rms_norm_eps": 1e-5,
            "sliding_window": None,
        }
        | text,
        image_token_index=IMAGE,
        vision_feature_select_strategy=select,
    )
    config.tie_word_embeddings = text.get("tie_word_embeddings", False)
    model = (NevaLlavaForConditionalGeneration if neva else LlavaForConditionalGeneration)(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0.0, 0.2, generator=generator)
            if parameter.ndim == 1 and name.endswith("weight"):  # of a norm
                parameter.add_(1.0)
    return model


def table_names(reference, tensors):
    """Tensors under the names of the table; GPT-2's layers are turned by hand."""
    from converters.llava import STYLES

    named = STYLES.disk_names(tensors)
    if reference.config.text_config.model_type != "gpt2":
        return named
    view = {}
    for name, tensor in named.items():
        if ".c_attn." in name:
            for part, one in zip("qkv", tensor.chunk(3, dim=-1), strict=True):
                view[name.replace("c_attn", f"{part}_proj")] = one.T if one.ndim > 1 else one
        elif name.endswith((".c_proj.weight", ".c_fc.weight")):
            view[name] = tensor.T
        else:
            view[name] = tensor
    return view


@pytest.fixture(scope="module")
def pair():
    """Makes (Hugging Face model, Megatron-Core model, table) with the same weights."""
    from converters.checkpoint import build_model
    from converters.llava import llava_drops, llava_table
    from converters.mapping import fuse_tensors
    from models.llava.config import HFClipTowerConfig, config_from_hf

    def make(settings=(), **options):
        reference = make_reference(**options)
        config = config_from_hf(reference.config)
        if options.get("hf"):
            vision = config.vision_transformer_config
            config.vision_transformer_config = HFClipTowerConfig(
                **{one.name: getattr(vision, one.name) for one in fields(vision)}
            )
        for name, value in dict(settings).items():
            setattr(config, name, value)
        rows = llava_table(reference.config)
        module = build_model(config, torch.float32)
        tensors = table_names(reference, reference.state_dict())
        for drop in llava_drops(reference.config.text_config):
            tensors.pop(drop.hf, None)
        module.load_state_dict(fuse_tensors(rows, tensors), strict=False)
        if options.get("hf"):  # the tensors are the reference's own
            tower = module.vision_model.transformer
            own = reference.model.vision_tower.vision_model.state_dict()
            for name in list(own):
                if ".q_proj." in name:  # head by head
                    parts = [own[name.replace("q_proj", f"{one}_proj")] for one in "qkv"]
                    heads = torch.stack([one.unflatten(0, (2, 16)) for one in parts], dim=1)
                    own[name.replace("q_proj", "linear_qkv")] = heads.flatten(0, 2)
            assert not tower.load_state_dict(own, strict=False).missing_keys
        return reference, module, rows

    return make


def sample(images, length, seed, slots=SLOTS, side=SIDE):
    """Tokens with the slots of so many images after the first token, and the images."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(0, IMAGE, (length,), generator=generator)
    places = torch.full((images * slots,), IMAGE)
    tiles = torch.randint(0, 256, (images, 3, side, side), generator=generator, dtype=torch.uint8)
    return torch.cat([text[:1], places, text[1:]]), tiles


def reference_logits(reference, tokens, tiles):
    kind = reference.config.vision_config.model_type.partition("_")[0]
    mean, std = (torch.tensor(one[kind]).view(3, 1, 1) for one in (MEANS, DEVIATIONS))
    images = {"pixel_values": (tiles.float() / 255 - mean) / std} if len(tiles) else {}
    return reference(input_ids=tokens.unsqueeze(0), **images).logits[0]


def join(samples):
    length = max(len(tokens) for tokens, _ in samples)
    tokens = torch.zeros(len(samples), length, dtype=torch.int64)
    for row, (own, _) in zip(tokens, samples, strict=True):
        row[: len(own)] = own
    return {
        "tokens": tokens,
        "position_ids": torch.arange(length).repeat(len(samples), 1),
        "tiles": torch.cat([tiles for _, tiles in samples]),
    }


MIXED = ((1, 6), (0, 9), (3, 5), (1, 2))


# Both are named: of a GPT-2, the sizes above are other names of these.
GPT2 = {"model_type": "gpt2", "activation_function": "gelu", "n_inner": 80, "n_positions": 64}
LLAMA31 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
# A short context before scaling, so that all three ranges of frequencies occur.
LLAMA31["original_max_position_embeddings"] = 16
SIGLIP = {"vision": "siglip", "select": "full"}
TWO_SCALES = (1.0, 0.5)
COMBINATIONS = {
    "clip-llama": {},
    "clip-mistral": {"model_type": "mistral"},
    "clip-qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
    "siglip-llama": {**SIGLIP, "tie_word_embeddings": True},
    "siglip-mistral": {**SIGLIP, "model_type": "mistral", "head_dim": 16},
    "siglip-qwen2": {**SIGLIP, "model_type": "qwen2"},
    "internvit-llama": {"vision": "internvl"},
    "internvit-qwen2": {"vision": "internvl", "head": True, "model_type": "qwen2"},
    "clip-llama31": {"rope_scaling": LLAMA31, "rope_theta": 5e5},
    "clip-nemotron": {"model_type": "nemotron", "head_dim": 12},
    "siglip-nemotron": {**SIGLIP, "model_type": "nemotron", "num_key_value_heads": 4},
    "clip-gpt2": {**GPT2, "activation_function": "gelu_new"},
    "siglip-gpt2": {**SIGLIP, **GPT2, "tie_word_embeddings": True, "head": True},
    "clip-affine-mistral": {"projector": "affine", "model_type": "mistral"},
    "siglip-2x2-gpt2": {**SIGLIP, **GPT2, "projector": "mlp_downsample_2x2_fix"},
    "internvit-3x3-nemotron": {
        "vision": "internvl",
        "projector": "mlp_downsample_3x3_fix",
        "model_type": "nemotron",
        "head_dim": 12,
    },
    "clip-two-scales-mistral": {"scales": TWO_SCALES, "model_type": "mistral"},
    "siglip-two-scales-2x2-gpt2": {
        **SIGLIP,
        **GPT2,
        "scales": TWO_SCALES,
        "projector": "mlp_downsample_2x2_fix",
    },
}


def slots_of(options):
    """The grid of two by two patches becomes one vector where it is merged."""
    return 1 if "downsample" in options.get("projector", "") else SLOTS


def side_of(options):
    return SIDE * len(options.get("scales", (1.0,)))


all_combinations = pytest.mark.parametrize("options", COMBINATIONS.values(), ids=COMBINATIONS)


@pytest.mark.parametrize(
    ("options", "slots"),
    [
        *((one, slots_of(one)) for one in COMBINATIONS.values()),
        ({"select": "full"}, 5),
        # As LLaVA-JP: the first patch is left out.
        ({**COMBINATIONS["siglip-gpt2"], "select": "default"}, 3),
        ({**COMBINATIONS["siglip-gpt2"], "select": "default", "scales": TWO_SCALES}, 3),
        ({"hf": True}, 4),
        ({"hf": True, "select": "full"}, 5),
        ({"hf": True, "scales": TWO_SCALES}, 4),
    ],
    ids=[
        *COMBINATIONS,
        *("class-token", "first-patch-dropped", "first-patch-dropped-two-scales"),
        *("clip-hf", "clip-hf-class-token", "clip-hf-two-scales"),
    ],
)
def test_each_sample_of_a_mixed_batch_has_the_logits_of_hugging_face(pair, options, slots):
    reference, module, _ = pair(**options)
    reference.eval()
    module.eval()
    side = side_of(options)
    samples = [sample(*sizes, seed, slots, side) for seed, sizes in enumerate(MIXED)]
    with torch.no_grad():
        found = module(**join(samples))
        assert found.shape[-1] == VOCABULARY
        for row, (tokens, tiles) in zip(found, samples, strict=True):
            expected = reference_logits(reference, tokens, tiles)
            assert expected.abs().max() > 1
            assert (row[: len(tokens)] - expected).abs().max() <= 1e-4


def test_what_the_image_shows_matters(pair):
    _, module, _ = pair()
    module.eval()
    batch = join([sample(1, 5, seed=3)])
    with torch.no_grad():
        first, second = module(**batch), module(**(batch | {"tiles": 255 - batch["tiles"]}))
    assert (first - second).abs().max() > 0.1


@all_combinations
def test_loss_and_every_gradient_agree_with_hugging_face(pair, options):
    from converters.mapping import split_tensors

    reference, module, rows = pair(**options)
    reference.eval()  # GPT-2's dropout is off on both sides
    module.train()
    slots, side = slots_of(options), side_of(options)
    samples = [sample(*sizes, seed, slots, side) for seed, sizes in enumerate(MIXED)]
    batch = join(samples)
    labels = torch.full_like(batch["tokens"], -100)
    expected = torch.zeros(())
    for row, (tokens, tiles) in enumerate(samples):
        wanted = tokens[1:].where(tokens[1:] != IMAGE, torch.tensor(-100))
        labels[row, : len(wanted)] = wanted
        logits = reference_logits(reference, tokens, tiles)[:-1]
        expected = expected + torch.nn.functional.cross_entropy(
            logits, wanted, ignore_index=-100, reduction="sum"
        )
    mask = (labels >= 0).float()
    losses, _ = module(**batch, labels=labels, loss_mask=mask)
    found = (losses * mask).sum()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    expected.backward()
    found.backward()
    gradients = {name: parameter.grad for name, parameter in module.named_parameters()}
    carried = {
        name: torch.zeros_like(buffer)
        for name, buffer in module.named_buffers()
        if ".carried." in name
    }
    ours = split_tensors(rows, gradients | carried)
    theirs = table_names(
        reference,
        {
            name: torch.zeros_like(one) if one.grad is None else one.grad
            for name, one in reference.named_parameters()
        },
    )
    assert ours.keys() == theirs.keys()
    for name, wanted in theirs.items():
        difference = (ours[name] - wanted).abs().max().item()
        assert difference <= 1e-4 * max(1.0, wanted.abs().max().item()), name


@pytest.mark.parametrize("part", ["language_model", "vision_model", "vision_projection"])
def test_a_frozen_part_gets_no_gradients_and_the_others_do(pair, part):
    _, module, _ = pair(settings={f"freeze_{part}": True})
    module.train()
    batch = join([sample(1, 5, seed=3)])
    labels = batch["tokens"].clone()
    losses, _ = module(**batch, labels=labels, loss_mask=torch.ones(labels.shape))
    losses.sum().backward()
    for name, parameter in module.named_parameters():
        assert (parameter.grad is None) == name.startswith(f"{part}."), name

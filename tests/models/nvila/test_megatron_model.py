"""The Megatron-Core model against the Hugging Face one: loss, every gradient, freezing."""

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.usefixtures("single_process")


@pytest.fixture(scope="module")
def pair(make_nano_model):
    """Makes (Hugging Face model, Megatron-Core model) with the same weights."""
    from converters.checkpoint import build_model
    from converters.mapping import fuse_tensors
    from converters.nvila import nvila_table
    from models.nvila.config import config_from_hf

    def make(projector="mlp_downsample_2x2_fix", tied=True, **settings):
        reference = make_nano_model(projector, tied)
        config = config_from_hf(reference.config)
        for name, value in settings.items():
            setattr(config, name, value)
        rows = nvila_table(reference.config)
        module = build_model(config, torch.float32)
        state = {name: value for name, value in reference.state_dict().items()}
        if tied:
            state.pop("llm.lm_head.weight")
        module.load_state_dict(fuse_tensors(rows, state), strict=False)
        return reference, module, rows

    return make


def make_batch(config, tiles=3, text=20, seed=0):
    """Two samples, the first with tiles; labels on the last positions of each."""
    random = np.random.default_rng(seed)
    image, newline = config.image_token_id, config.newline_token_id
    slots = ([image] * config.tokens_per_tile + [newline]) * tiles
    words = [int(word) for word in random.integers(0, 200, text)]
    first = words[:4] + slots + words[4:]
    second = [int(word) for word in random.integers(0, 200, len(first))]
    tokens = torch.tensor([first, second])
    labels = torch.full_like(tokens, -100)
    labels[0, -6:-1] = tokens[0, -5:]
    labels[1, -9:-1] = tokens[1, -8:]
    size = config.tile_size
    pixels = torch.from_numpy(random.integers(0, 256, (tiles, 3, size, size), dtype=np.uint8))
    return tokens, labels, pixels


def reference_loss(reference, tokens, labels, pixels):
    """Mean cross entropy over the labelled positions, by the plain formula."""
    values = (pixels.float() / 255 - 0.5) / 0.5
    logits = reference(input_ids=tokens, pixel_values=values).logits
    chosen = labels >= 0
    log_probabilities = logits[chosen].log_softmax(dim=-1)
    return -log_probabilities.gather(1, labels[chosen][:, None]).mean()


def megatron_loss(module, tokens, labels, pixels):
    positions = torch.arange(tokens.shape[1]).expand_as(tokens)
    mask = (labels >= 0).float()
    losses, returned = module(
        tokens=tokens, position_ids=positions, tiles=pixels, labels=labels, loss_mask=mask
    )
    assert returned is mask
    return (losses * mask).sum() / mask.sum()


def packed_loss(module, tokens, labels, pixels):
    """The same mean, with both samples cut to their own lengths in one row that is not full."""
    from models.image_slots.steps import image_slot_forward_step

    lengths = [tokens.shape[1], tokens.shape[1] - 5, 7]
    rows = [tokens[0], tokens[1, 5:], torch.zeros(7, dtype=torch.long)]
    wanted = [labels[0], labels[1, 5:], torch.full((7,), -100)]
    row = torch.cat(wanted).unsqueeze(0)
    batch = {
        "tokens": torch.cat(rows).unsqueeze(0),
        "position_ids": torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0),
        "tiles": pixels,
        "labels": row,
        "loss_mask": (row >= 0).float(),
        "cu_seqlens": torch.tensor([0, *lengths]).cumsum(0).to(torch.int32),
        "max_seqlen": max(lengths),
    }
    losses, mask = image_slot_forward_step(module, batch)
    return (losses * mask).sum() / mask.sum()


@pytest.mark.parametrize(
    ("projector", "tied", "packed"),
    [
        ("mlp_downsample_2x2_fix", True, False),
        ("mlp_downsample_3x3_fix", False, False),
        ("mlp_downsample_2x2_fix", True, True),
    ],
)
def test_loss_and_every_gradient_agree_with_hugging_face(pair, projector, tied, packed):
    from converters.mapping import split_tensors

    reference, module, rows = pair(projector, tied)
    # The vocabulary is padded, so the padding must be out of the softmax for the losses to agree.
    language = module.config.language_transformer_config
    assert language.padded_vocab_size() > language.vocab_size
    batch = make_batch(reference.config)
    if packed:
        tokens, labels, pixels = batch
        counts = (labels >= 0).sum(dim=1)
        parts = [
            reference_loss(reference, tokens[:1], labels[:1], pixels),
            reference_loss(reference, tokens[1:, 5:], labels[1:, 5:], pixels[:0]),
        ]
        expected = (parts[0] * counts[0] + parts[1] * counts[1]) / counts.sum()
        found = packed_loss(module, *batch)
    else:
        expected = reference_loss(reference, *batch)
        found = megatron_loss(module, *batch)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    expected.backward()
    found.backward()
    gradients = {name: parameter.grad for name, parameter in module.named_parameters()}
    carried = {
        name: torch.zeros_like(value)
        for name, value in module.state_dict().items()
        if ".carried." in name
    }
    by_hf_name = split_tensors(rows, gradients | carried)
    # The last vision block never reaches the features, and a key bias cancels in the softmax.
    for name, parameter in reference.named_parameters():
        wanted = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        difference = (by_hf_name[name] - wanted).abs().max().item()
        assert difference <= 1e-4 * max(1.0, wanted.abs().max().item()), name
    padding = gradients["language_model.embedding.word_embeddings.weight"][language.vocab_size :]
    assert padding.abs().max() == 0


def test_each_part_agrees_with_the_class_of_transformers(pair):
    from transformers import Qwen2ForCausalLM, SiglipVisionModel

    reference, module, _ = pair()
    assert type(reference.vision_tower) is SiglipVisionModel
    assert type(reference.llm) is Qwen2ForCausalLM
    tokens, _, pixels = make_batch(reference.config, tiles=5)
    text = tokens[1:]
    with torch.no_grad():
        values = (pixels.float() / 255 - 0.5) / 0.5
        states = reference.vision_tower(values, output_hidden_states=True).hidden_states
        features = module.vision_model(pixels)
        logits = module(tokens=text, position_ids=torch.arange(text.shape[1])[None])
        expected = reference.llm(input_ids=text).logits
    assert len(states) == 4  # the embeddings and three blocks
    assert (features - states[-2]).abs().max() <= 1e-4
    assert (features - states[-1]).abs().max() > 0.1
    assert (logits - expected).abs().max() <= 1e-4


def test_a_batch_without_images_gives_zero_and_not_missing_gradients(pair):
    reference, module, _ = pair()
    tokens, labels, _ = make_batch(reference.config, tiles=0)
    empty = torch.zeros((0, 3, 56, 56), dtype=torch.uint8)
    for tiles in (None, empty):
        module.zero_grad()
        megatron_loss(module, tokens, labels, tiles).backward()
        for part in (module.vision_model, module.vision_projection):
            for name, parameter in part.named_parameters():
                assert parameter.grad is not None, name
                assert parameter.grad.abs().max() == 0, name


def test_frozen_parts_get_no_gradients(pair):
    reference, module, _ = pair(freeze_vision_model=True, freeze_language_model=True)
    megatron_loss(module, *make_batch(reference.config)).backward()
    trained = {name for name, value in module.named_parameters() if value.grad is not None}
    assert trained
    assert all(name.startswith("vision_projection.") for name in trained)


def test_packed_samples_are_computed_as_if_alone(pair):
    from megatron.core.packed_seq_params import PackedSeqParams

    reference, module, _ = pair()
    tokens, labels, pixels = make_batch(reference.config)
    module.eval()
    with torch.no_grad():
        positions = torch.arange(tokens.shape[1])
        alone = module(tokens=tokens, position_ids=positions.expand_as(tokens), tiles=pixels)
        boundaries = torch.tensor([0, tokens.shape[1], 2 * tokens.shape[1]], dtype=torch.int32)
        packed = module(
            tokens=tokens.reshape(1, -1),
            position_ids=positions.repeat(1, 2),
            tiles=pixels,
            packed_seq_params=PackedSeqParams(
                qkv_format="thd",
                cu_seqlens_q=boundaries,
                cu_seqlens_kv=boundaries,
                max_seqlen_q=tokens.shape[1],
                max_seqlen_kv=tokens.shape[1],
            ),
        )
    assert (packed.reshape(alone.shape) - alone).abs().max() <= 1e-4


def test_assets_of_another_size_and_context_parallelism_are_refused(
    pair, write_nano_directory, tmp_path
):
    from models.nvila.config import config_from_hf

    reference, _, _ = pair()
    write_nano_directory(tmp_path / "hf")
    config = config_from_hf(reference.config)
    config.assets = str(tmp_path / "hf")
    config.language_transformer_config.num_layers = 24
    with pytest.raises(ValueError, match="num_layers=2 in its language part, but .* has 24"):
        config.resolve_assets()
    config = config_from_hf(reference.config)
    config.context_parallel_size = 2
    with pytest.raises(ValueError, match="context_parallel_size: 2 is not supported"):
        config.configure_model()

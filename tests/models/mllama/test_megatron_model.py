"""The Megatron-Core model against the Hugging Face one: logits, loss, every gradient, freezing."""

import pytest
import torch

from tests.models.mllama.samples import (
    TILE,
    VOCABULARY,
    join,
    make_reference,
    make_sample,
    mixed_samples,
    pack,
    reference_logits,
    reference_loss,
    unpacked,
    with_labels,
)

pytestmark = pytest.mark.usefixtures("single_process")


@pytest.fixture(scope="module")
def pair():
    """Makes (Hugging Face model, Megatron-Core model, table) with the same weights."""
    from converters.checkpoint import build_model
    from converters.mapping import fuse_tensors
    from converters.mllama import STYLES, mllama_table
    from models.mllama.config import config_from_hf

    def make(transformer=None, reference_options=None, **settings):
        reference = make_reference(**(reference_options or {}))
        config = config_from_hf(reference.config)
        for name, value in settings.items():
            setattr(config, name, value)
        for name, value in (transformer or {}).items():
            setattr(config, name, value)
            setattr(config.language_transformer_config, name, value)
            setattr(config.vision_transformer_config, name, value)
        rows = mllama_table(reference.config)
        module = build_model(config, torch.float32)
        module.load_state_dict(
            fuse_tensors(rows, STYLES.disk_names(reference.state_dict())), strict=False
        )
        return reference, module, rows

    return make


def megatron_loss(module, batch):
    from models.mllama.steps import mllama_forward_step

    losses, mask = mllama_forward_step(module, batch)
    assert mask is batch["loss_mask"]
    return (losses * mask).sum()


@pytest.mark.parametrize(
    "options",
    [
        {},
        # The last layer looks at the image, the first too; the output of the last layer is tapped.
        {"cross_attention_layers": (0, 2, 4), "num_layers": 5, "taps": (2, 0, 3)},
        {"taps": (0,)},
    ],
)
def test_each_sample_of_a_mixed_batch_has_the_logits_of_hugging_face(pair, options):
    reference, module, _ = pair(reference_options=options)
    samples = mixed_samples()
    reference.eval()
    module.eval()
    with torch.no_grad():
        found = module(**join(samples))
        assert found.shape == (4, 12, VOCABULARY)
        for row, sample in enumerate(samples):
            expected = reference_logits(reference, sample)
            assert expected.abs().max() > 1
            assert (found[row, : len(sample.tokens)] - expected).abs().max() <= 1e-4, row


@pytest.mark.parametrize("options", [{}, {"cross_attention_layers": (0, 2), "num_layers": 3}])
def test_each_sample_of_a_packed_row_has_the_logits_of_hugging_face(pair, options):
    from models.mllama.steps import mllama_forward_step

    reference, module, _ = pair(reference_options=options)
    samples = mixed_samples()
    reference.eval()
    module.eval()
    with torch.no_grad():
        found = mllama_forward_step(module, pack(samples))
        for part, sample in zip(unpacked(found, samples), samples, strict=True):
            expected = reference_logits(reference, sample)
            assert (part - expected).abs().max() <= 1e-4
        texts = [make_sample(7, seed=8), make_sample(9, seed=9)]
        found = mllama_forward_step(module, pack(texts))
        for part, sample in zip(unpacked(found, texts), texts, strict=True):
            assert (part - reference_logits(reference, sample)).abs().max() <= 1e-4


def test_text_alone_needs_no_image(pair):
    reference, module, _ = pair()
    sample = make_sample(9, seed=8)
    module.eval()
    with torch.no_grad():
        positions = torch.arange(9).unsqueeze(0)
        found = module(tokens=sample.tokens.unsqueeze(0), position_ids=positions)
        assert (found[0] - reference_logits(reference.eval(), sample)).abs().max() <= 1e-4


def test_what_the_image_shows_matters(pair):
    """Guards the comparison: with closed gates or a blind mask everything above would pass too."""
    reference, module, _ = pair()
    sample = make_sample(9, (3,), (2,), seed=5)
    batch = join([sample])
    module.eval()
    with torch.no_grad():
        first = module(**batch)
        second = module(**(batch | {"tiles": 255 - batch["tiles"]}))
    assert (first - second).abs().max() > 0.1
    assert reference.config.image_token_index == VOCABULARY


RECOMPUTE = {
    "recompute_granularity": "full",
    "recompute_method": "uniform",
    "recompute_num_layers": 1,
}


def packed_with_labels(batch, samples):
    """The packed row of the samples with the labels that they have in a padded batch."""
    row = pack(samples)
    labels = torch.full_like(row["tokens"], -100)
    for part, wanted, sample in zip(
        unpacked(labels, samples), batch["labels"], samples, strict=True
    ):
        part.copy_(wanted[: len(sample.tokens)])
    return row | {"labels": labels, "loss_mask": (labels >= 0).float()}


@pytest.mark.parametrize(
    ("transformer", "packed"),
    [
        ({}, False),
        (RECOMPUTE, False),
        ({"recompute_granularity": "selective"}, False),
        ({}, True),
        (RECOMPUTE, True),
    ],
)
def test_loss_and_every_gradient_agree_with_hugging_face(pair, transformer, packed):
    from converters.mapping import split_tensors
    from converters.mllama import STYLES

    reference, module, rows = pair(transformer)
    module.train()
    language = module.config.language_transformer_config
    assert language.padded_vocab_size() > VOCABULARY + 8
    samples = mixed_samples()
    batch = with_labels(join(samples), samples)
    expected = reference_loss(reference, samples, batch["labels"])
    if packed:
        batch = packed_with_labels(batch, samples)
    found = megatron_loss(module, batch)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    expected.backward()
    found.backward()
    gradients = {name: parameter.grad for name, parameter in module.named_parameters()}
    by_hf_name = split_tensors(rows, gradients)
    wanted_by_name = STYLES.disk_names(
        {
            name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            for name, parameter in reference.named_parameters()
        }
    )
    assert wanted_by_name.keys() == by_hf_name.keys()
    for name, wanted in wanted_by_name.items():
        difference = (by_hf_name[name] - wanted).abs().max().item()
        assert difference <= 1e-4 * max(1.0, wanted.abs().max().item()), name
    padding = gradients["language_model.output_layer.weight"][VOCABULARY:]
    assert padding.abs().max() == 0


def test_a_batch_without_images_gives_zero_and_not_missing_gradients(pair):
    _, module, _ = pair()
    samples = [make_sample(10, seed=6), make_sample(8, seed=7)]
    batch = with_labels(join(samples), samples)
    assert batch["tiles"].shape == (0, 3, TILE, TILE)
    module.train()
    loss = megatron_loss(module, batch)
    loss.backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        if "vision" in name or "cross_attention" in name or "gate_" in name:
            assert parameter.grad.abs().max() == 0, name
    module.eval()
    with torch.no_grad():  # the blank image of training changes nothing
        assert megatron_loss(module, batch).item() == pytest.approx(loss.item(), rel=1e-6)


@pytest.mark.parametrize("transformer", [{}, RECOMPUTE])
def test_frozen_parts_get_no_gradients(pair, transformer):
    _, module, _ = pair(transformer, freeze_vision_model=True, freeze_vision_projection=True)
    module.train()
    samples = mixed_samples()
    megatron_loss(module, with_labels(join(samples), samples)).backward()
    trained = {name for name, value in module.named_parameters() if value.grad is not None}
    assert "language_model.decoder.layers.1.cross_attention.linear_kv.weight" in trained
    assert all(name.startswith("language_model.") for name in trained)


@pytest.mark.parametrize("field", ["context_parallel_size", "virtual_pipeline_model_parallel_size"])
def test_what_was_not_seen_to_work_is_refused(pair, field):
    from models.mllama.config import config_from_hf

    config = config_from_hf(make_reference().config)
    setattr(config, field, 2)
    with pytest.raises(ValueError, match=f"{field}: 2 is not supported for mllama; use"):
        config.configure_model()


@pytest.mark.parametrize(
    ("part", "field", "value", "message"),
    [
        ("text_config", "rope_scaling", {"rope_type": "yarn", "factor": 2.0}, "rope_scaling"),
        ("text_config", "tie_word_embeddings", True, "tie_word_embeddings"),
        ("text_config", "hidden_act", "gelu", "hidden_act"),
        ("vision_config", "hidden_act", "gelu_pytorch_tanh", "hidden_act"),
        ("vision_config", "vision_output_dim", 7680, "vision_output_dim: 7680"),
    ],
)
def test_what_the_model_cannot_do_is_refused(pair, part, field, value, message):
    from models.mllama.config import config_from_hf

    config = make_reference().config
    setattr(getattr(config, part), field, value)
    with pytest.raises(ValueError, match=message):
        config_from_hf(config)


def test_published_sizes(nemo):
    """6,404 vision tokens of an image, and 11 billion parameters' worth of layers."""
    from transformers import MllamaConfig

    from models.mllama.config import MllamaVisionConfig, config_from_hf

    vision = MllamaVisionConfig()
    assert vision.max_num_tiles * vision.tokens_per_tile == 6404
    assert vision.padded_tokens_per_tile == 1608
    assert vision.output_size == 7680
    description = MllamaConfig(vision_config={"image_size": 560})
    description.text_config.rope_scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    config = config_from_hf(description)
    assert config.vision_transformer_config.tapped_layers == vision.tapped_layers
    language = config.language_transformer_config
    assert language.cross_attention_layers == (3, 8, 13, 18, 23, 28, 33, 38)
    assert language.padded_vocab_size() == 128_384

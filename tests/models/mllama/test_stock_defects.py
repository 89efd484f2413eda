"""What NeMo's stock MLlama model and exporter do wrong: each test fails on them."""

import math
from types import SimpleNamespace

import pytest
import torch

from tests.models.mllama.samples import TILE, make_reference
from tests.stock_classes import fails_on_stock

pytestmark = pytest.mark.usefixtures("single_process")


@pytest.fixture(scope="module")
def description():
    """Hugging Face's configuration of a small model: no size is that of a published one."""
    config = make_reference().config
    config.torch_dtype = torch.float32
    config.vision_config.patch_size = 7
    return config


@pytest.fixture(scope="module")
def make_vision(description):
    """Makes the vision side of the small model, with large weights."""

    def make(implementation):
        if implementation == "stock":
            from nemo.collections.vlm.mllama.model.mllama import HFMLlamaImporter

            config = HFMLlamaImporter("unused")._vision_model_config(description)
            config.use_cpu_initialization = True
            return enlarge(config.configure_model())
        from converters.checkpoint import build_model
        from models.mllama.config import config_from_hf

        return enlarge(build_model(config_from_hf(description), torch.float32))

    return make


def enlarge(module):
    """Gives a module weights that make everything in it move its output."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.normal_(0.0, 0.2, generator=generator)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1.0)
    return module.eval()


def images_of_a_rank(implementation, description, monkeypatch):
    """Returns the shape of what a context-parallel rank gets, or None where there can be none."""
    if implementation == "ours":
        from models.mllama.config import config_from_hf

        config = config_from_hf(description)
        config.context_parallel_size = 2
        with pytest.raises(ValueError, match="context_parallel_size: 2 is not supported"):
            config.configure_model()
        return None
    from megatron.core import parallel_state
    from nemo.collections.vlm.mllama.model.base import mllama_data_step

    monkeypatch.setattr(parallel_state, "get_context_parallel_world_size", lambda: 2)
    monkeypatch.setattr(parallel_state, "get_context_parallel_rank", lambda: 0)
    monkeypatch.setattr(torch.Tensor, "cuda", lambda tensor, **_: tensor)
    batch = {
        "tokens": torch.ones(1, 8, dtype=torch.long),
        "batch_images": torch.zeros(1, 4, 4, 3, TILE, TILE),
        "batch_masks": torch.zeros(1, 4, 2, dtype=torch.long),
        "num_chunks": torch.ones(1, 4, dtype=torch.long),
        "aspect_ratio_ids": torch.ones(1, 4, dtype=torch.long),
    }
    return mllama_data_step(iter([batch]))["batch_images"].shape


@fails_on_stock(AssertionError, "Images are cut like a text: a rank gets half of the images.")
def test_context_parallelism_takes_no_images_away(implementation, description, monkeypatch):
    shape = images_of_a_rank(implementation, description, monkeypatch)
    assert shape is None or shape[1] == 4


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ("projection input", 32 * (1 + 2)),
        ("positions of a tile", (28 // 7) ** 2 + 1),
        ("MLP width", 64),
        ("global layers", 2),
    ],
)
@fails_on_stock(AssertionError, "The sizes of the published model are written in the code.")
def test_sizes_are_those_of_the_configuration(implementation, make_vision, size, expected):
    model = make_vision(implementation)
    if implementation == "stock":
        encoder, projection = model.vision_encoder, model.vision_projection.encoder
        layers, following = encoder.transformer.layers, encoder.global_transformer.layers
        positions = encoder.positional_embedding
    else:
        encoder, projection = model.vision_model, model.vision_projection
        layers, following = encoder.local_encoder.layers, encoder.global_encoder.layers
        positions = encoder.position_embedding
    found = {
        "projection input": projection.weight.shape[1],
        "positions of a tile": positions.shape[0],
        "MLP width": layers[0].mlp.linear_fc1.weight.shape[0],
        "global layers": len(following),
    }
    assert found[size] == expected


@fails_on_stock(AssertionError, "The fused bias and GELU is the approximation by tanh.")
def test_gelu_is_exact(implementation, make_vision):
    model = make_vision(implementation)
    if implementation == "stock":
        mlp = model.vision_encoder.transformer.layers[0].mlp
    else:
        mlp = model.vision_model.local_encoder.layers[0].mlp
    first, second = mlp.linear_fc1, mlp.linear_fc2
    hidden = torch.randn(6, 2, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found, bias = mlp(hidden)
        found = found if bias is None else found + bias
        if hasattr(first, "layer_norm_weight"):
            hidden = torch.nn.functional.layer_norm(
                hidden, (32,), first.layer_norm_weight, first.layer_norm_bias, eps=1e-5
            )
        # In float64, so that only the model's own rounding remains.
        inner = hidden.double() @ first.weight.double().T + first.bias.double()
        inner = 0.5 * inner * (1 + torch.erf(inner / math.sqrt(2)))
        expected = inner @ second.weight.double().T + second.bias.double()
    difference = (found - expected).abs().max() / expected.abs().max()
    assert difference.item() <= 1e-6


LENGTH, START = 6, 2


def attended(implementation, config, hidden, context):
    """Returns float[s, 1, width] of a cross-attention whose text sees one image from START on."""
    from megatron.core.transformer.enums import AttnMaskType
    from megatron.core.transformer.spec_utils import ModuleSpec, build_module

    from models.mllama.config import language_config_from_hf
    from models.mllama.cross_attention import cross_attention_layer_spec
    from models.mllama.visibility import tile_visibility

    tokens = len(context) // 4
    shared = language_config_from_hf(config)
    shared.tokens_per_tile = tokens
    shared.use_cpu_initialization = True
    spec = cross_attention_layer_spec().submodules.cross_attention
    if implementation == "ours":
        attention = enlarge(build_module(spec, config=shared, layer_number=1))
        one = torch.ones(1, dtype=torch.long)
        seen = tile_visibility(torch.tensor([[START, LENGTH]]), 2 * one, one, LENGTH, 4)
        return attention(hidden, context, seen)
    from nemo.collections.vlm.mllama.model import utils
    from nemo.collections.vlm.mllama.model.language import MLlamaCrossAttention

    spec = ModuleSpec(
        module=MLlamaCrossAttention,
        params={"attn_mask_type": AttnMaskType.no_mask},
        submodules=spec.submodules,
    )
    attention = enlarge(build_module(spec, config=shared, layer_number=1))
    padded = utils._pad_attention_masks(
        [[[START, LENGTH]]], torch.tensor([[2]]), LENGTH, 4, "cpu", torch.float32
    )
    masks, rows = utils._generate_cross_attention_mask(
        LENGTH, "cpu", torch.float32, context.view(1, 1, 4, tokens, -1), padded
    )
    return attention(
        hidden,
        cross_attention_masks=None,
        xattn_cache=attention._compute_xattn_kv_cache(context),
        full_text_row_masked_out_mask=rows.permute(2, 0, 1, 3).squeeze(2),
        cross_attention_bias=masks * torch.finfo(torch.float32).min,
    )[0]


def attended_by_hugging_face(config, hidden, context):
    from transformers.models.mllama.modeling_mllama import (
        MllamaTextCrossAttention,
        _prepare_cross_attention_mask,
    )

    config._attn_implementation = "eager"
    attention = enlarge(MllamaTextCrossAttention(config, layer_idx=0))
    seen = torch.zeros(1, LENGTH, 1, 4, dtype=torch.long)
    seen[0, START:, 0, :2] = 1
    mask, _ = _prepare_cross_attention_mask(seen, len(context) // 4, torch.float32)
    output = attention(
        hidden.transpose(0, 1),
        cross_attention_states=context.transpose(0, 1),
        attention_mask=mask,
    )[0]
    return output.transpose(0, 1)


def check_text_before_an_image(output):
    """Where all vision tokens are the same, what is attended to is so for every row."""
    assert output.shape == (LENGTH, 1, 64)
    assert output[START:].abs().max() > 0.1
    assert (output - output[START]).abs().max() <= 1e-5


@pytest.fixture
def texts(description):
    """Text float[s, 1, width] and 4 tiles of 3 vision tokens, all of them the same."""
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(LENGTH, 1, 64, generator=generator)
    context = torch.randn(1, 1, 64, generator=generator).expand(12, 1, 64).contiguous()
    return description.text_config, hidden, context


@torch.no_grad()
def test_text_before_an_image_attends_to_it_in_hugging_face(texts):
    check_text_before_an_image(attended_by_hugging_face(*texts))


@fails_on_stock(AssertionError, "What text before the first image attends to is set to zero.")
@torch.no_grad()
def test_text_before_an_image_attends_to_it(implementation, texts):
    check_text_before_an_image(attended(implementation, *texts))


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A Hugging Face directory of a small model, with all files of the published ones."""
    from launch.quickstart.mllama_parent import MllamaShape, write_mllama

    folder = tmp_path_factory.mktemp("published") / "hf"
    shape = MllamaShape(vision_width=32, vision_heads=2, vision_mlp_width=64, text_width=64)
    write_mllama(folder, shape=shape)
    return folder


def export(implementation, published, folder, monkeypatch):
    if implementation == "ours":
        from converters.export_hf import export_checkpoint
        from converters.import_hf import import_checkpoint

        import_checkpoint("mllama", published, folder / "checkpoint")
        export_checkpoint(folder / "checkpoint", folder / "out")
        return folder / "out"
    from nemo.collections.vlm.mllama.model.mllama import HFMLlamaExporter
    from transformers import AutoTokenizer, MllamaForConditionalGeneration

    model = MllamaForConditionalGeneration.from_pretrained(published)
    tokenizer = SimpleNamespace(tokenizer=AutoTokenizer.from_pretrained(published))
    for name, value in (
        ("ckpt_load", lambda *_: ({}, {})),
        ("init", lambda *_: model),
        ("convert_state", lambda *_: model),
        ("tokenizer", tokenizer),
    ):
        monkeypatch.setattr(HFMLlamaExporter, name, value)
    return HFMLlamaExporter("checkpoint").apply(folder / "out")


@fails_on_stock(AssertionError, "Only the weights and the tokenizer are written.")
def test_an_export_has_all_that_a_server_reads(implementation, published, tmp_path, monkeypatch):
    out = export(implementation, published, tmp_path, monkeypatch)
    files = {path.name for path in out.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= files
    processor = {"preprocessor_config.json", "processor_config.json", "chat_template.json"}
    assert processor - files == set()

"""LanguageLoRA on a model in this process: what it freezes, where it puts adapters, from what."""

import dataclasses

import pytest
import torch
from torch import nn

LAYERS, CROSS = 4, (1, 3)
SELF = {"self_attention.linear_qkv", "self_attention.linear_proj"}
ACROSS = {
    "cross_attention.linear_q",
    "cross_attention.linear_kv",
    "cross_attention.linear_proj",
}
MLP = {"mlp.linear_fc1", "mlp.linear_fc2"}
ALL = {
    f"language_model.decoder.layers.{layer}.{name}"
    for layer in range(LAYERS)
    for name in (ACROSS if layer in CROSS else SELF) | MLP
}


@pytest.fixture
def build(single_process):
    """Builds a stage of a nano model; the gates are open and all weights random."""
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

    from models.mllama.config import MllamaConfig, MllamaLanguageConfig, MllamaVisionConfig

    def make(first=True, last=True, **options):
        model_parallel_cuda_manual_seed(3)
        config = MllamaConfig(
            language_transformer_config=MllamaLanguageConfig(
                num_layers=LAYERS,
                cross_attention_layers=CROSS,
                hidden_size=32,
                ffn_hidden_size=48,
                num_attention_heads=4,
                num_query_groups=2,
                kv_channels=8,
                vocab_size=40,
            ),
            vision_transformer_config=MllamaVisionConfig(
                num_layers=2,
                num_global_layers=1,
                hidden_size=16,
                ffn_hidden_size=24,
                num_attention_heads=2,
                image_size=28,
                tapped_layers=(1,),
            ),
            image_token_id=40,
            use_cpu_initialization=True,
            **options,
        )
        module = config.configure_model()
        if not (first and last):
            module = config.build(first, last, None)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if "gate" in name:
                    parameter.fill_(1.0)
        return module

    return make


@pytest.fixture
def lora(nemo):
    from models.lora import LanguageLoRA

    return LanguageLoRA


def adapted(model):
    from nemo.collections.llm.peft.lora import LoRALinear

    return {name for name, module in model.named_modules() if isinstance(module, LoRALinear)}


def trained(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def some_batch():
    return {
        "tokens": torch.tensor([[40, 1, 2, 3], [4, 5, 6, 7]]),
        "position_ids": torch.arange(4).expand(2, 4),
        "tiles": torch.arange(2 * 3 * 28 * 28).reshape(2, 3, 28, 28).to(torch.uint8),
        "tiles_per_image": torch.tensor([2]),
        "aspect_ratio_ids": torch.tensor([2]),
        "images_per_sample": torch.tensor([1, 0]),
        "image_spans": torch.tensor([[0, 4]]),
    }


def test_defaults_adapt_the_language_model_and_leave_vision_trainable(build, lora):
    model = build()
    everything = trained(model)
    lora(dim=2)(model)
    assert adapted(model) == ALL
    for name in ALL:
        layer = model.get_submodule(name)
        assert layer.adapter.linear_in.weight.shape[0] == 2
        assert layer.adapter.linear_out.weight.shape[1] == 2
    vision = {name for name in everything if name.startswith("vision_")}
    assert any("position_gate" in name for name in vision)
    adapters = {f"{name}.adapter.linear_{end}.weight" for name in ALL for end in ("in", "out")}
    assert trained(model) == vision | adapters


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"freeze_vision_model": True}, {"vision_projection", "language_model"}),
        ({"freeze_vision_projection": True}, {"vision_model", "language_model"}),
        ({"freeze_vision_model": True, "freeze_vision_projection": True}, {"language_model"}),
    ],
)
def test_flags_freeze_parts(build, lora, options, parts):
    model = build()
    lora(dim=2, **options)(model)
    assert {name.partition(".")[0] for name in trained(model)} == parts
    for name in ("vision_model", "vision_projection"):
        assert getattr(model.config, f"freeze_{name}") == (name not in parts)


def test_an_unfrozen_language_model_trains_beside_its_adapters(build, lora):
    model = build()
    before = trained(model)
    lora(dim=2, freeze_language_model=False)(model)
    after = {name.replace(".to_wrap.", ".") for name in trained(model) if ".adapter." not in name}
    assert after == before


def test_what_the_configuration_freezes_stays_frozen(build, lora):
    model = build(freeze_vision_model=True)
    lora(dim=2)(model)
    assert not [name for name in trained(model) if name.startswith("vision_model")]


def test_freezing_finds_the_model_in_any_wrapper_and_chunk(build, lora):
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
    from megatron.core.transformer.module import Float16Module

    class Lightning(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

    first, last = build(last=False), build(first=False)
    assert last.vision_model is None
    config = dataclasses.replace(first.config, bf16=True)
    wrapped = DistributedDataParallel(
        first.config, DistributedDataParallelConfig(), Float16Module(config, first)
    )
    chunks = nn.ModuleList([Lightning(wrapped), Lightning(last)])
    lora(freeze_vision_model=True).freeze_model(chunks)
    names = trained(chunks)
    assert names == {f"0.module.module.module.vision_projection.{x}" for x in ("weight", "bias")}


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["*.language_model.*.linear_qkv"], {n for n in ALL if n.endswith(".linear_qkv")}),
        (["linear_q"], {n for n in ALL if n.endswith(".linear_q")}),
        (["*.layers.3.*"], {n for n in ALL if ".layers.3." in n}),
        (["*.cross_attention.linear_*"], {n for n in ALL if ".cross_attention." in n}),
        (["linear_kv", "*.layers.0.mlp.*"], {n for n in ALL if "_kv" in n or ".0.mlp." in n}),
    ],
)
def test_patterns(build, lora, patterns, expected):
    model = build()
    lora(target_modules=patterns)(model)
    assert expected
    assert adapted(model) == expected


def test_layers_are_counted_over_all_stages(build, lora, monkeypatch):
    # The second of two stages: its own list begins at 0, its layers are 2 and 3.
    from megatron.core import parallel_state

    import models.lora

    model = build(first=False)
    model.language_model.decoder.layers = model.language_model.decoder.layers[2:]
    monkeypatch.setattr(parallel_state, "get_pipeline_model_parallel_world_size", lambda: 2)
    gathered = []

    def gather(by_stage, names, group):
        gathered.append(names)
        by_stage[:] = [["module.language_model.decoder.layers.0.mlp.linear_fc1"], names]

    monkeypatch.setattr(models.lora.dist, "all_gather_object", gather)
    # Layer 0 is on the other stage only, which is no mistake.
    lora(target_modules=["*.layers.3.*.linear_fc1", "*.layers.0.*"])(model)
    assert adapted(model) == {"language_model.decoder.layers.1.mlp.linear_fc1"}
    assert "module.language_model.decoder.layers.2.self_attention.linear_qkv" in gathered[0]


@pytest.mark.parametrize(
    "pattern", ["linear_gate", "*.vision_model.*.linear_qkv", "*.layers.4.*", "output_layer"]
)
def test_a_pattern_that_matches_nothing_is_refused(build, lora, pattern):
    with pytest.raises(ValueError, match="^target_modules: ") as error:
        lora(target_modules=["linear_qkv", pattern])(build())
    message = str(error.value)
    assert repr(pattern) in message
    assert "linear_fc1, linear_fc2, linear_kv, linear_proj, linear_q, linear_qkv," in message
    assert "\n" not in message


def test_layouts_that_do_not_work_are_refused(build, lora, monkeypatch):
    from megatron.core import parallel_state

    model = build()
    with pytest.raises(ValueError, match="^dim: 0 is not allowed"):
        lora(dim=0)(model)
    with monkeypatch.context() as patch:
        patch.setattr(parallel_state, "get_tensor_model_parallel_world_size", lambda: 4)
        with pytest.raises(ValueError, match="^dim: 6 .* degree of 4"):
            lora(dim=6)(model)
    monkeypatch.setattr(parallel_state, "get_virtual_pipeline_model_parallel_world_size", lambda: 2)
    with pytest.raises(ValueError, match="^virtual_pipeline_model_parallel_size: 2"):
        lora()(model)


def test_fresh_adapters_change_nothing_and_do_not_depend_on_chance(build, lora):
    model, other = build().eval(), build()
    batch = some_batch()
    with torch.no_grad():
        before = model(**batch)
        torch.manual_seed(1)
        lora(dim=2)(model)
        torch.manual_seed(2)
        lora(dim=2)(other)
        after = model.eval()(**batch)
    assert torch.equal(before, after)
    inner = {
        name: value for name, value in model.named_parameters() if name.endswith("linear_in.weight")
    }
    for name, value in inner.items():
        assert torch.equal(value, other.get_parameter(name))
        # Xavier over the whole matrix: std = sqrt(2 / (in + out)).
        expected = (2 / sum(value.shape)) ** 0.5
        assert 0.6 < value.std() / expected < 1.4
    firsts = {round(value.flatten()[0].item(), 6) for value in inner.values()}
    assert len(firsts) == len(inner)
    third = build()
    lora(dim=2, seed=5)(third)
    name = next(iter(inner))
    assert not torch.equal(third.get_parameter(name), inner[name])


def test_an_adapter_is_the_product_of_its_matrices(build, lora):
    model = build().eval()
    lora(dim=2, alpha=6)(model)
    layer = model.language_model.decoder.layers[1].cross_attention.linear_q
    with torch.no_grad():
        layer.adapter.linear_out.weight.normal_()
        hidden = torch.randn(5, 1, 32)
        found, _ = layer(hidden)
        norm = nn.functional.rms_norm(hidden, (32,), layer.to_wrap.layer_norm_weight, 1e-5)
        inner, outer = layer.adapter.linear_in.weight, layer.adapter.linear_out.weight
        expected = norm @ (layer.to_wrap.weight + 6 / 2 * outer @ inner).T
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_state_dictionary_goes_back_in(build, lora):
    model, other = build(), build()
    lora(dim=2)(model)
    lora(dim=2)(other)
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            parameter.fill_(index)
    other.load_state_dict(model.state_dict())
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
    assert not [name for name in model.state_dict() if "to_wrap" in name]


def test_names_to_save_are_those_of_a_checkpoint_in_bf16_too(build, lora):
    from types import SimpleNamespace

    from megatron.core.transformer.module import Float16Module

    model = build()
    adapt = lora(dim=2, freeze_language_model=False)
    adapt(model)
    config = dataclasses.replace(model.config, bf16=True)
    module = nn.ModuleDict({"module": Float16Module(config, model)})
    adapt.set_params_to_save(SimpleNamespace(lightning_module=module))
    names = {
        name
        for name in model.sharded_state_dict(prefix="module.")
        if not name.endswith("_extra_state")
    }
    assert adapt.params_to_save == names


def test_a_base_is_needed(lora):
    from types import SimpleNamespace

    adapt = lora()
    adapt.wrapped_io = SimpleNamespace(model_ckpt_path=None)
    with pytest.raises(ValueError, match="^init_from: None is not allowed with LoRA"):
        adapt.apply_transform(trainer=None)


def test_it_is_a_configuration_of_nemo_run(lora):
    import nemo_run as run
    from nemo_run.core.serialization.zlib_json import ZlibJSONSerializer

    config = run.Config(lora, dim=4, target_modules=["linear_q"])
    serialiser = ZlibJSONSerializer()
    restored = serialiser.deserialize(serialiser.serialize(config))
    built = run.Partial(dict, peft=restored)
    assert restored == config
    import fiddle

    made = fiddle.build(built)()["peft"]
    assert (type(made), made.dim, made.target_modules) == (lora, 4, ["linear_q"])
    assert made.freeze_language_model
    assert not made.freeze_vision_model

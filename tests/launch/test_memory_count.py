"""The count of memory against numbers worked out by hand."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from launch.memory_count import (
    FRAMEWORK_BYTES,
    Layout,
    Weights,
    activation_bytes,
    adapter_weights,
    count_memory,
    count_weights,
)


def layout(**changes):
    return Layout(**{"rows": 2, "positions": 10, "images": 1, "recompute": False} | changes)


class Toy(nn.Module):
    """The names of a model with two layers: 10 words of width 4, and an MLP of 4 to 6."""

    def __init__(self):
        super().__init__()
        self.vision_model = nn.Linear(3, 4, bias=False)  # 12
        self.vision_model.requires_grad_(False)
        self.language_model = nn.Module()
        self.language_model.embedding = nn.Module()
        self.language_model.embedding.word_embeddings = nn.Embedding(10, 4)  # 40
        self.language_model.decoder = nn.Module()
        self.language_model.decoder.layers = nn.ModuleList([self.layer(), self.layer()])
        self.language_model.decoder.final_layernorm = nn.LayerNorm(4)  # 8
        self.language_model.output_layer = nn.Linear(4, 10, bias=False)  # 40
        self.register_buffer("carried", torch.zeros(5))

    @staticmethod
    def layer():
        layer = nn.Module()
        layer.linear_fc1 = nn.Linear(4, 6)  # 24 split, 6 split
        layer.norm = nn.LayerNorm(4)  # 8 whole
        return layer


def test_weights_of_one_gpu():
    counted = count_weights(Toy(), layout())
    assert counted == Weights(all=176, trained=164, on_gpu=181, trained_on_gpu=164)


def test_a_tower_of_transformers_is_whole_on_each_rank():
    toy = Toy()
    toy.vision_model = nn.Module()
    toy.vision_model.layers = nn.ModuleList([nn.Module()])
    toy.vision_model.layers[0].linear_qkv = nn.Linear(3, 4)  # 16
    for is_whole, count in ((False, 8), (True, 16)):
        toy.vision_model.config = SimpleNamespace(WHOLE_ON_EACH_RANK=is_whole)
        # The others: 5 carried, 80 / 2 of words, 60 / 2 of layers, 16 and 8 of norms.
        counted = count_weights(toy, layout(tensor_parallel=2))
        assert counted.on_gpu == count + 5 + 40 + 30 + 24


def test_weights_of_the_fullest_stage():
    # First: 12 + 5 carried + 40 / 2 + one layer (30 / 2 + 8). Last: 8 + 40 / 2 + one layer.
    counted = count_weights(Toy(), layout(tensor_parallel=2, pipeline_parallel=2))
    # 60 x 2 + 43 x 4 bytes are less than 51 x 2 + 51 x 4.
    assert counted == Weights(all=176, trained=164, on_gpu=51, trained_on_gpu=51)


def test_adapters():
    names = []

    def adapts(name):
        names.append(name)
        return True

    # A: 4 x 8, B: 8 x 6, and 6 lengths, in both layers.
    assert adapter_weights(Toy(), adapts, 8, has_lengths=False) == 2 * 80
    assert adapter_weights(Toy(), adapts, 8, has_lengths=True) == 2 * 86
    assert names[0] == "module.language_model.decoder.layers.0.linear_fc1"
    counted = count_weights(Toy(), layout(tensor_parallel=2), adapters=160)
    assert counted.all == 176 + 160


def part(**sizes):
    settings = {
        "num_layers": 3,
        "hidden_size": 4,
        "num_attention_heads": 2,
        "num_query_groups": 1,
        "kv_channels": 2,
        "ffn_hidden_size": 6,
        "gated_linear_unit": True,
        "hidden_dropout": 0.0,
        "vocab_size": 100,
    }
    return SimpleNamespace(**settings | sizes)


def family(**changes):
    vision = part(num_layers=2, gated_linear_unit=False, image_size=4, patch_size=2)
    settings = {
        "language_transformer_config": part(),
        "vision_transformer_config": vision,
        "freeze_vision_model": True,
    }
    return SimpleNamespace(**settings | changes)


def test_activations():
    # A layer: 4 x 4 of width, 2 x 4 + 2 x 2 of heads, 3 x 6 inside: 46 values of 2 bytes for each
    # of 20 positions. Logits: 20 x 100, twice in 2 bytes and once in 4.
    layer, logits = 46 * 2 * 20, 20 * 100 * 8
    assert activation_bytes(family(), layout()) == 3 * layer + logits
    # Its input alone, and one layer while it is computed again.
    kept = activation_bytes(family(), layout(recompute=True))
    assert kept == 3 * 4 * 2 * 20 + layer + logits
    # Half of everything with positions split too; of what is whole otherwise, all.
    both = activation_bytes(family(), layout(tensor_parallel=2, sequence_parallel=True))
    assert both == (3 * layer + logits) / 2
    tensor = activation_bytes(family(), layout(tensor_parallel=2))
    assert tensor == 3 * (16 + 15) * 2 * 20 + logits / 2
    # One layer of three in each of three stages, and three micro-batches at once in the first.
    stages = activation_bytes(family(), layout(pipeline_parallel=3, micro_batches=8))
    assert stages == 3 * layer
    # The tower trains too: 4 patches and a class token; 4 x 4 + 12 + 2 x 6 values in 2 layers.
    trained = activation_bytes(family(freeze_vision_model=False), layout())
    tower = 2 * (16 + 12 + 12) * 2 * 5
    assert trained - activation_bytes(family(), layout()) == tower
    # Two scales: four quarters and the whole. A tower of transformers is not split.
    vision = family().vision_transformer_config
    vision.image_scales, vision.WHOLE_ON_EACH_RANK = (1.0, 0.5), True
    options = {"freeze_vision_model": False, "vision_transformer_config": vision}
    assert activation_bytes(family(**options), layout(tensor_parallel=2)) - tensor == 5 * tower


def test_bytes_of_each_kind():
    weights = Weights(all=0, trained=0, on_gpu=1000, trained_on_gpu=600)
    counted = count_memory(family(), weights, layout(data_parallel=4, has_reference=True))
    assert dict(counted.rows()) == {
        "weights": 2000,
        "gradients": 2400,
        "optimizer": 1800,
        "reference": 1200,
        "activations": activation_bytes(family(), layout()),
        "framework": FRAMEWORK_BYTES,
    }
    assert counted.total == sum(dict(counted.rows()).values())


@pytest.mark.usefixtures("nemo")
@pytest.mark.parametrize(
    ("stage", "scheme"), [("pretrain", "none"), ("sft", "none"), ("sft", "lora")]
)
def test_llava_jp_is_counted_to_fit_24_gb(stage, scheme, capsys):
    from launch.__main__ import main

    factory = f"llava_jp(stage='{stage}', size='1b', peft_scheme='{scheme}')"
    arguments = ["plan", "--factory", factory, "--vocabulary", "50688", "--gpu", "rtx4090"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "fits rtx4090 (24 GiB)" in printed


@pytest.mark.usefixtures("nemo")
def test_what_does_not_fit_is_said(capsys):
    from launch.__main__ import main

    factory = "nvila(stage='sft', size='15b', num_gpus_per_node=8)"
    arguments = ["plan", "--factory", factory, "--vocabulary", "151666", "--gpu"]
    # 15.3 billion weights: with TP 4 and 2 ranks of data 15.3 / 4 x (2 + 4 + 12 / 2) = 46 GB.
    assert main([*arguments, "rtx4090"]) == 1
    assert "does not fit rtx4090" in capsys.readouterr().out
    assert main([*arguments, "h100", "--nodes", "3"]) == 0
    assert main(["plan", "--factory", factory, "--gpu", "h100"]) == 2
    assert "give --vocabulary, or init_from=" in capsys.readouterr().err

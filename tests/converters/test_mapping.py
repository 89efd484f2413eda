import pytest
import torch

from converters.lazy import HeldTensor
from converters.mapping import fuse_tensors, split_tensors, without_dropped
from converters.nvila import WHOLE_SIGLIP
from converters.rows import ConversionError, Dropped, FuseGateUp, FuseQkv, PadRows, Rename

ROWS = [
    Rename(hf="norm", megatron="m.norm"),
    PadRows(hf="embed", megatron="m.embed", rows=5, padded_rows=8),
    FuseQkv(
        query="q", key="k", value="v", megatron="m.qkv", num_heads=4, num_groups=2, head_size=3
    ),
    FuseGateUp(gate="gate", up="up", megatron="m.fc1"),
]


def make_tensors():
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "norm": (6,),
        "embed": (5, 6),
        "q": (12, 6),
        "k": (6, 6),
        "v": (6, 6),
        "gate": (7, 6),
        "up": (7, 6),
    }
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def test_every_row_of_the_fused_qkv_comes_from_the_right_head():
    tensors = make_tensors()
    fused = fuse_tensors(ROWS, tensors)["m.qkv"]
    # Megatron-Core's order, written out by hand: group 0 = q0 q1 k0 v0, group 1 = q2 q3 k1 v1.
    heads = [("q", 0), ("q", 1), ("k", 0), ("v", 0), ("q", 2), ("q", 3), ("k", 1), ("v", 1)]
    for place, (name, head) in enumerate(heads):
        assert torch.equal(fused[3 * place : 3 * place + 3], tensors[name][3 * head : 3 * head + 3])


def test_gate_comes_before_up_and_padding_is_zero():
    tensors = make_tensors()
    megatron = fuse_tensors(ROWS, tensors)
    assert torch.equal(megatron["m.fc1"][:7], tensors["gate"])
    assert torch.equal(megatron["m.fc1"][7:], tensors["up"])
    assert torch.equal(megatron["m.embed"][:5], tensors["embed"])
    assert megatron["m.embed"][5:].abs().sum() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_way_back_gives_the_same_bits(dtype):
    tensors = {name: tensor.to(dtype) for name, tensor in make_tensors().items()}
    back = split_tensors(ROWS, fuse_tensors(ROWS, tensors))
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == dtype
        assert torch.equal(back[name], tensor)


def test_one_group_and_as_many_groups_as_heads():
    for groups in (1, 4):
        row = FuseQkv(
            query="q", key="k", value="v", megatron="m", num_heads=4, num_groups=groups, head_size=3
        )
        tensors = {
            "q": torch.randn(12),
            "k": torch.randn(3 * groups),
            "v": torch.randn(3 * groups),
        }
        back = split_tensors([row], fuse_tensors([row], tensors))
        for name, tensor in tensors.items():
            assert torch.equal(back[name], tensor)


def test_every_missing_and_surplus_key_is_listed():
    tensors = make_tensors()
    del tensors["k"], tensors["up"]
    tensors["stranger"] = torch.zeros(1)
    with pytest.raises(ConversionError, match=r"missing: k, up; not in the table: stranger"):
        fuse_tensors(ROWS, tensors)
    with pytest.raises(ConversionError, match=r"missing: m.embed, m.fc1, m.norm, m.qkv"):
        split_tensors(ROWS, {})


def test_a_wrong_shape_names_the_tensor():
    tensors = make_tensors() | {"k": torch.zeros(9, 6)}
    with pytest.raises(ConversionError, match="k: has 9 rows, config.json says 6"):
        fuse_tensors(ROWS, tensors)
    tensors = make_tensors() | {"embed": torch.zeros(4, 6)}
    with pytest.raises(ConversionError, match="embed: has 4 rows, config.json says 5"):
        fuse_tensors(ROWS, tensors)
    tensors = make_tensors() | {"up": torch.zeros(8, 6)}
    with pytest.raises(ConversionError, match="up: has 8 rows, but gate has 7"):
        fuse_tensors(ROWS, tensors)
    tensors = make_tensors() | {"v": torch.zeros(6, 5)}
    with pytest.raises(
        ConversionError, match=r"differ in width: q \[12, 6\], k \[6, 6\], v \[6, 5\]"
    ):
        fuse_tensors(ROWS, tensors)


def test_what_the_model_does_not_have_is_dropped_by_name():
    tower = "vision_tower.vision_model."
    names = [f"{tower}head.probe", f"{tower}header", "vision_tower.logit_scale", f"{tower}x.head."]
    tensors = {name: HeldTensor(torch.ones(1)) for name in [*names, "vision_tower.text_model.a"]}
    kept = without_dropped(WHOLE_SIGLIP, tensors, "vision: x")
    assert list(kept) == [f"{tower}header", f"{tower}x.head."]
    assert len(tensors) == 5


def test_a_copy_is_dropped_where_it_is_one_and_stays_without_its_original():
    drops = [Dropped(hf="output", copy_of="embedding")]
    table = torch.randn(4, 2)
    other = table.clone()
    other.view(torch.int32)[3, 1] ^= 1
    stored = {"embedding": HeldTensor(table), "output": HeldTensor(table.clone())}
    released = []
    assert list(without_dropped(drops, stored, "hf: x", lambda: released.append(1))) == [
        "embedding"
    ]
    assert released
    with pytest.raises(ConversionError, match="hf: x says tie_word_embeddings, but output differs"):
        without_dropped(drops, stored | {"output": HeldTensor(other)}, "hf: x")
    lonely = {"output": stored["output"]}
    assert without_dropped(drops, lonely, "hf: x") == lonely

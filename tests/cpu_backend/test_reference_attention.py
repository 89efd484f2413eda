"""DotProductAttention against the formula, written out with an explicit boolean mask."""

import math

import pytest
import torch

from cpu_backend.stand_ins.transformer_engine.pytorch import DotProductAttention

HEADS, DIMENSION, BATCH = 4, 8, 3


def plain_attention(q, k, v, hidden=None, bias=None, scale=None):
    """[s, b, h, d] -> [s, b, h * d]; rows that see nothing are zero."""
    scale = 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale
    groups = q.shape[2] // k.shape[2]
    # Query head i belongs to key head i // groups.
    owner = torch.arange(q.shape[2]) // groups
    k, v = k[:, :, owner], v[:, :, owner]
    scores = torch.einsum("qbhd,kbhd->bhqk", q, k) * scale
    if bias is not None:
        scores = scores + bias
    visible = torch.ones(scores.shape, dtype=torch.bool)
    if hidden is not None:
        visible = visible & ~hidden
    weights = torch.exp(scores - scores.detach().amax(dim=-1, keepdim=True)) * visible
    weights = weights / weights.sum(dim=-1, keepdim=True).clamp_min(1e-30)
    return torch.einsum("bhqk,kbhd->qbhd", weights, v).flatten(2)


def make_qkv(queries=7, keys=7, key_heads=HEADS, batch=BATCH, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def make(length, heads):
        return torch.randn(length, batch, heads, DIMENSION, generator=generator, requires_grad=True)

    return make(queries, HEADS), make(keys, key_heads), make(keys, key_heads)


def assert_same(output, expected, tensors):
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    probe = torch.randn(expected.shape, generator=torch.Generator().manual_seed(9))
    got = torch.autograd.grad((output * probe).sum(), tensors)
    want = torch.autograd.grad((expected * probe).sum(), tensors)
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def attention(key_heads=HEADS, **arguments):
    return DotProductAttention(HEADS, DIMENSION, num_gqa_groups=key_heads, **arguments)


def top_left(queries, keys):
    return torch.arange(keys)[None, :] > torch.arange(queries)[:, None]


def bottom_right(queries, keys):
    return torch.arange(keys)[None, :] > torch.arange(queries)[:, None] + keys - queries


@pytest.mark.parametrize("key_heads", [4, 2, 1])
@pytest.mark.parametrize(
    ("mask_type", "keys", "hidden"),
    [
        ("no_mask", 7, None),
        ("no_mask", 11, None),
        ("causal", 7, top_left(7, 7)),
        ("causal", 11, top_left(7, 11)),
        ("causal_bottom_right", 11, bottom_right(7, 11)),
    ],
)
def test_masks_that_need_no_tensor(key_heads, mask_type, keys, hidden):
    q, k, v = make_qkv(keys=keys, key_heads=key_heads)
    # Without effect on these kinds, as in Transformer Engine.
    ignored = torch.ones(1, 1, 7, keys, dtype=torch.bool)
    output = attention(key_heads)(q, k, v, ignored, attn_mask_type=mask_type)
    assert_same(output, plain_attention(q, k, v, hidden), [q, k, v])


@pytest.mark.parametrize("key_heads", [4, 2])
def test_padding_hides_padded_keys_and_silences_padded_queries(key_heads):
    q, k, v = make_qkv(key_heads=key_heads)
    padded = torch.zeros(BATCH, 1, 1, 7, dtype=torch.bool)
    padded[0, ..., 5:] = True
    padded[2, ..., 1:] = True
    layer = attention(key_heads, attn_mask_type="padding")
    output = layer(q, k, v, padded)
    assert_same(output, plain_attention(q, k, v, padded | padded.mT), [q, k, v])
    assert output[5:, 0].abs().max() == 0
    causal = layer(q, k, v, padded, attn_mask_type="padding_causal")
    assert_same(causal, plain_attention(q, k, v, padded | padded.mT | top_left(7, 7)), [q, k, v])


def test_padding_of_queries_and_keys_of_cross_attention():
    q, k, v = make_qkv(queries=4, keys=9)
    queries = torch.zeros(BATCH, 1, 1, 4, dtype=torch.bool)
    keys = torch.zeros(BATCH, 1, 1, 9, dtype=torch.bool)
    queries[1, ..., 3:] = True
    keys[1, ..., 6:] = True
    output = attention(attention_type="cross")(q, k, v, (queries, keys), attn_mask_type="padding")
    assert_same(output, plain_attention(q, k, v, queries.mT | keys), [q, k, v])


def test_arbitrary_masks_per_sample():
    q, k, v = make_qkv(queries=4, keys=6)
    hidden = torch.rand(BATCH, 1, 4, 6, generator=torch.Generator().manual_seed(4)) < 0.4
    hidden[1, 0, 2] = True
    output = attention()(q, k, v, hidden, attn_mask_type="arbitrary")
    assert_same(output, plain_attention(q, k, v, hidden), [q, k, v])
    assert torch.isfinite(output).all()


@pytest.mark.parametrize("mask_type", ["no_mask", "causal"])
def test_a_bias_is_added_before_or_after_scaling(mask_type):
    q, k, v = make_qkv()
    bias = torch.randn(1, HEADS, 7, 7, generator=torch.Generator().manual_seed(6))
    hidden = top_left(7, 7) if mask_type == "causal" else None
    for kind, factor in (("post_scale_bias", 1.0), ("pre_scale_bias", 0.3)):
        output = attention(softmax_scale=0.3)(
            q,
            k,
            v,
            attn_mask_type=mask_type,
            core_attention_bias_type=kind,
            core_attention_bias=bias,
        )
        expected = plain_attention(q, k, v, hidden, bias * factor, scale=0.3)
        assert_same(output, expected, [q, k, v])


def test_softmax_scale_and_the_other_layout():
    q, k, v = make_qkv()
    output = attention(softmax_scale=0.7, attn_mask_type="no_mask")(q, k, v)
    assert_same(output, plain_attention(q, k, v, scale=0.7), [q, k, v])
    swapped = attention()(*(t.transpose(0, 1) for t in (q, k, v)), qkv_format="bshd")
    assert_same(swapped.transpose(0, 1), plain_attention(q, k, v, top_left(7, 7)), [q, k, v])


def test_sliding_window():
    q, k, v = make_qkv()
    distance = torch.arange(7)[:, None] - torch.arange(7)[None, :]
    output = attention(window_size=(2, 0))(q, k, v)
    assert_same(output, plain_attention(q, k, v, (distance < 0) | (distance > 2)), [q, k, v])
    both = attention(window_size=(1, 2), attn_mask_type="no_mask")(q, k, v)
    assert_same(both, plain_attention(q, k, v, (distance < -2) | (distance > 1)), [q, k, v])


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("lengths", [(4, 4, 4), (3, 1, 5, 5), (9,), (2, 0, 6)])
def test_packed_sequences_are_separate_sequences(causal, lengths):
    total = sum(lengths)
    q, k, v = make_qkv(total, total, key_heads=2, batch=1)
    boundaries = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    output = attention(2)(
        *(t.squeeze(1) for t in (q, k, v)),
        None,
        qkv_format="thd",
        cu_seqlens_q=boundaries,
        cu_seqlens_kv=boundaries,
        max_seqlen_q=max(lengths),
        max_seqlen_kv=max(lengths),
        attn_mask_type="padding_causal" if causal else "padding",
    )
    parts = [
        plain_attention(*(t[start:end] for t in (q, k, v)), top_left(n, n) if causal else None)
        for start, end, n in zip(boundaries, boundaries[1:], lengths, strict=False)
        if n > 0
    ]
    assert output.shape == (total, HEADS * DIMENSION)
    assert_same(output, torch.cat(parts).squeeze(1), [q, k, v])


def test_packed_cross_attention_has_lengths_of_its_own():
    q, k, v = make_qkv(6, 10, batch=1)
    cu_q, cu_kv = torch.tensor([0, 2, 6]), torch.tensor([0, 7, 10])
    output = attention(attention_type="cross")(
        *(t.squeeze(1) for t in (q, k, v)),
        qkv_format="thd",
        cu_seqlens_q=cu_q,
        cu_seqlens_kv=cu_kv,
        attn_mask_type="padding",
    )
    parts = [
        plain_attention(q[:2], k[:7], v[:7]),
        plain_attention(q[2:], k[7:], v[7:]),
    ]
    assert_same(output, torch.cat(parts).squeeze(1), [q, k, v])


@pytest.mark.parametrize("padded", ["queries", "keys", "both"])
@pytest.mark.parametrize(("first", "second"), [(3, 2), (3, 3), (4, 4)])
def test_packed_sequences_may_be_stored_with_gaps(first, second, padded):
    q, k, v = make_qkv(12, 12, batch=1)
    lengths, stored = torch.tensor([0, first, first + second]), torch.tensor([0, 4, 8])
    stored_q = lengths if padded == "keys" else stored
    stored_kv = lengths if padded == "queries" else stored
    output = attention()(
        *(t.squeeze(1) for t in (q, k, v)),
        qkv_format="thd",
        cu_seqlens_q=lengths,
        cu_seqlens_kv=lengths,
        cu_seqlens_q_padded=stored_q,
        cu_seqlens_kv_padded=stored_kv,
        attn_mask_type="padding_causal",
    )
    expected = torch.zeros(12, HEADS * DIMENSION)
    for index, length in enumerate((first, second)):
        queries = slice(stored_q[index], stored_q[index] + length)
        keys = slice(stored_kv[index], stored_kv[index] + length)
        hidden = top_left(length, length)
        expected[queries] = plain_attention(q[queries], k[keys], v[keys], hidden).squeeze(1)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)


def test_dropout_draws_from_the_tracker_in_training_only():
    forks = []

    class Tracker:
        def fork(self):
            forks.append(1)
            return torch.random.fork_rng(devices=[])

    q, k, v = make_qkv(32, 32)
    layer = attention(
        attention_dropout=0.5, attn_mask_type="no_mask", get_rng_state_tracker=Tracker
    )
    torch.manual_seed(0)
    dropped = layer(q, k, v)
    assert forks == [1]
    assert not torch.allclose(dropped, plain_attention(q, k, v))
    means = torch.stack([attention(attention_dropout=0.5, attn_mask_type="no_mask")(q, k, v)
                         for _ in range(200)]).mean(dim=0)  # fmt: skip
    torch.testing.assert_close(means, plain_attention(q, k, v), rtol=0.0, atol=0.2)
    torch.testing.assert_close(layer.eval()(q, k, v), plain_attention(q, k, v))
    assert forks == [1]


def test_what_is_not_there_says_so():
    q, k, v = make_qkv()
    with pytest.raises(ValueError, match="attn_mask_type='diagonal'"):
        attention()(q, k, v, attn_mask_type="diagonal")
    with pytest.raises(ValueError, match="core_attention_bias_type='alibi'"):
        attention()(q, k, v, core_attention_bias_type="alibi")
    with pytest.raises(ValueError, match="needs an attention_mask"):
        attention()(q, k, v, attn_mask_type="padding")
    with pytest.raises(ValueError, match="needs cu_seqlens_q"):
        attention()(q, k, v, qkv_format="thd")


def test_a_checkpoint_without_its_extra_state_loads():
    layer = torch.nn.ModuleDict({"core_attention": attention()})
    assert list(layer.state_dict()) == ["core_attention._extra_state"]
    layer.load_state_dict({}, strict=True)

"""The blocks of the PyTorch module: against numbers made by hand."""

import math

import numpy as np
import pytest
from released import BATCH, close, inputs, modeling, network, torch

pytestmark = pytest.mark.slow  # of the witness itself


def attention_by_hand(values, x, text, seen, turns, cap):
    """One example, one number at a time: x (N, 96), text (L, 10), seen (L,), turns (N, 6)."""
    width, heads, kv_heads = 12, 8, 2

    def norm(name, y, eps):
        y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + eps)
        return y * values[f"{name}.weight"] + values[f"{name}.bias"]

    def head(y, h):
        return y[h * width : (h + 1) * width]

    def turn(y, n):
        pairs = (y[0::2] + 1j * y[1::2]) * turns[n]
        return np.stack([pairs.real, pairs.imag], -1).ravel()

    def weights(scores):
        return np.exp(scores) / np.exp(scores).sum()

    q = norm("q_norm", x @ values["wq.weight"].T, 1e-5)
    k = norm("k_norm", x @ values["wk.weight"].T, 1e-5)
    ky = norm("ky_norm", text @ values["wk_y.weight"].T, 1e-6)
    v, vy = x @ values["wv.weight"].T, text @ values["wv_y.weight"].T
    rows, words = range(len(x)), np.flatnonzero(seen)
    out = np.zeros((len(x), heads * width))
    for n in rows:
        for h in range(heads):
            query, own, other = turn(head(q[n], h), n), h // (heads // kv_heads), h % kv_heads
            scores = np.array([query @ turn(head(k[m], own), m) for m in rows]) / math.sqrt(width)
            scores = scores if cap is None else cap * np.tanh(scores / cap)
            found = sum(w * head(v[m], own) for w, m in zip(weights(scores), rows, strict=True))
            scores = np.array([query @ head(ky[w], other) for w in words]) / math.sqrt(width)
            text_found = sum(
                p * head(vy[w], other) for p, w in zip(weights(scores), words, strict=True)
            )
            found = found + np.tanh(values["gate"][h]) * text_found
            out[n, h * width : (h + 1) * width] = found
    return out @ values["wo.weight"].T


@pytest.mark.parametrize("cap", [None, 30.0, 0.5])
def test_attention_is_what_it_is_by_hand(cap):
    attention = network().layers[1].attention
    values = {name: value.numpy() for name, value in attention.state_dict().items()}
    draw = torch.Generator().manual_seed(2)
    x = torch.randn(BATCH, 8, 96, generator=draw, dtype=torch.float64)
    text, mask = inputs()[2:]
    turns = modeling.rotations((2, 2, 2), 12, x)
    found = attention(x, text, (turns, mask, cap))
    for one in range(BATCH):
        by_hand = (x[one].numpy(), text[one].numpy(), mask[one].numpy(), turns.numpy())
        assert close(found[one], attention_by_hand(values, *by_hand, cap))


def test_a_cap_bends_large_scores_and_none_leaves_them():
    one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    keys = torch.tensor([50.0, 0.0], dtype=torch.float64).reshape(1, 1, 2, 1)
    values = torch.tensor([1.0, 0.0], dtype=torch.float64).reshape(1, 1, 2, 1)
    odds = math.exp(2 * math.tanh(25))
    assert close(modeling.attention(one, keys, values, 2.0), odds / (1 + odds))
    assert close(modeling.attention(one, keys, values, None), 1.0)
    model, arguments = network(), inputs()
    assert model.softcap == 30.0 and network(softcap=None).softcap is None
    capped, model.softcap = model(*arguments), None
    plain, model.softcap = model(*arguments), 1e7
    assert close(model(*arguments), plain) and not close(capped, plain, 1e-6)


def test_capped_scores_may_be_held_in_parts(monkeypatch):
    model, arguments = network(), inputs()
    whole = model(*arguments)
    monkeypatch.setattr(modeling, "QUERIES", 5)
    assert close(model(*arguments), whole)


def test_scores_of_half_precision_are_held_in_single():
    draw = torch.Generator().manual_seed(0)
    queries, keys, values = torch.randn(3, 1, 8, 40, 12, generator=draw).bfloat16()
    found = modeling.attention(4 * queries, 4 * keys, values, 30.0)
    exact = modeling.attention(*(x.double() for x in (4 * queries, 4 * keys, values)), 30.0)
    assert found.dtype == torch.bfloat16 and close(found, exact, 0.02)


def test_attention_to_no_text_is_zero_whatever_torch_makes_of_it(monkeypatch):
    def older(queries, keys, values, attn_mask):  # 0 / 0 where nothing is seen
        scores = queries @ keys.transpose(-1, -2) / math.sqrt(queries.shape[-1])
        return scores.masked_fill(~attn_mask, -math.inf).softmax(-1) @ values

    queries, keys, values = torch.randn(3, 2, 1, 4, 6, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[True, False, True, False], [False] * 4])
    found = modeling.text_attention(queries, keys, values, mask)
    assert torch.equal(found[1], torch.zeros_like(found[1]))
    monkeypatch.setattr(modeling, "scaled_dot_product_attention", older)
    assert close(modeling.text_attention(queries, keys, values, mask), found, 1e-6)


def test_norms_are_rounded_before_their_weight():
    norm = modeling.RMSNorm(3, 1e-5)
    norm.weight.data = torch.tensor([1.5, -1.0, 3.0])
    x = torch.tensor([[3e-3, 0.0, 4e-3]])
    size = math.sqrt((9e-6 + 16e-6) / 3 + 1e-5)
    assert close(norm(x), x * norm.weight / size, 1e-6)
    norm.weight.data = norm.weight.data.bfloat16() * 1.0078125
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    wide = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-5).sqrt()
    assert torch.equal(norm.bfloat16()(x), wide.bfloat16() * norm.weight)


def test_the_feed_forward_gates_with_its_first_matrix():
    feed_forward = modeling.FeedForward(2, 2).double()
    for name, matrix in {
        "w1": [[1, 0], [0, 2]],
        "w2": [[1, 10], [0, 1]],
        "w3": [[3, 0], [0, -1]],
    }.items():
        getattr(feed_forward, name).weight.data = torch.tensor(matrix, dtype=torch.float64)
    a, b = 1 / (1 + math.exp(-1)) * 3, 2 / (1 + math.exp(-2)) * -1
    assert close(feed_forward(torch.ones(2, dtype=torch.float64)), [a + 10 * b, b])


@pytest.mark.parametrize("open_gates", [(), (1,), (3,), (1, 3)])
def test_a_block_is_scaled_and_gated_in_the_released_order(open_gates):
    block = network().layers[0]
    modulation = block.adaLN_modulation[1]
    modulation.weight.data[:] = 0
    bias = torch.arange(4, dtype=torch.float64).reshape(4, 1) / 4 + 0.3
    bias[[i for i in (1, 3) if i not in open_gates]] = 0
    modulation.bias.data = bias.expand(4, 96).reshape(-1).clone()
    draw = torch.Generator().manual_seed(2)
    x = torch.randn(BATCH, 8, 96, generator=draw, dtype=torch.float64)
    text, mask = inputs()[2:]
    context = (modeling.rotations((2, 2, 2), 12, x), mask, 30.0)
    expected = x
    if 1 in open_gates:
        y = block.attention(block.attention_norm1(x) * 1.3, block.attention_y_norm(text), context)
        expected = expected + math.tanh(0.55) * block.attention_norm2(y)
    if 3 in open_gates:
        y = block.feed_forward(block.ffn_norm1(expected) * 1.8)
        expected = expected + math.tanh(1.05) * block.ffn_norm2(y)
    condition = torch.zeros(BATCH, 8, 96, dtype=torch.float64)
    assert close(block(x, condition, text, context), expected)

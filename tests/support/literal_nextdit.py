"""The released Next-DiT forward pass, spelt out in float64 numpy: an outside witness for the model.

It follows what is published of the 2.8B OneDiffusion weights (arXiv 2411.16318), takes the long way
wherever that does, and shares no code with the package.  The facts it rests on:

* Tokens run by view, row, column; a patch is flattened (pT = 1, pH, pW, C), channel fastest.
* Conditioning is per token: time is patchified with the latents, averaged per token, embedded
  unscaled from (0, 1000] with cosines first; the embedded masked mean of the raw text is added.
* A block is x += tanh(gate) * RMS(f(RMS(x) * (1 + scale))), for f attention, then SwiGLU.
* q, k and text keys are LayerNormed over all heads together, then split; RoPE turns the adjacent
  channels (2i, 2i + 1) of q and k, a third of the pairs each for view, row and column.
* Query head h reads key head h // group of the latents but h mod num_kv_heads of the text; the text
  result, times tanh(gate[h]), joins the other before one wo.

Shapes: B batch, F views, p patch size, N = F (H/p) (W/p) tokens, L text tokens, d a head's width.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class LiteralConfig:
    """Numbers of one Next-DiT, under the names of the released config where it has them."""

    hidden_size: int
    depth: int
    num_heads: int
    num_kv_heads: int
    caption_channels: int
    in_channels: int = 16
    patch_size: int = 2  # of rows and columns; views are never merged
    multiple_of: int = 256
    norm_eps: float = 1e-5
    frequency_size: int = 256
    theta: float = 10000.0

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def embedding_size(self) -> int:
        return min(self.hidden_size, 1024)

    @property
    def ffn_size(self) -> int:
        return -(-int(2 * (4 * self.hidden_size) / 3) // self.multiple_of) * self.multiple_of


RELEASED = LiteralConfig(3840, depth=16, num_heads=32, num_kv_heads=8, caption_channels=2048)


def released_shapes(config: LiteralConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of the release; a Linear weight is (out, in)."""
    hidden, text, embedding = config.hidden_size, config.caption_channels, config.embedding_size
    kv = config.num_kv_heads * config.head_dim
    patch = config.patch_size**2 * config.in_channels

    def with_bias(name, *shape):
        return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}

    shapes = {
        **with_bias("x_embedder", hidden, patch),
        **with_bias("t_embedder.mlp.0", embedding, config.frequency_size),
        **with_bias("t_embedder.mlp.2", embedding, embedding),
        **with_bias("y_embedder.0", text),
        **with_bias("y_embedder.1", embedding, text),
        **with_bias("final_layer.linear", patch, hidden),
        **with_bias("final_layer.adaLN_modulation.1", hidden, embedding),
    }
    for block in (f"layers.{n}" for n in range(config.depth)):
        attention, ffn = f"{block}.attention", f"{block}.feed_forward"
        shapes |= {
            **{f"{attention}.{w}.weight": (hidden, hidden) for w in ("wq", "wo")},
            **{f"{attention}.{w}.weight": (kv, hidden) for w in ("wk", "wv")},
            **{f"{attention}.{w}.weight": (kv, text) for w in ("wk_y", "wv_y")},
            **with_bias(f"{attention}.q_norm", hidden),
            **with_bias(f"{attention}.k_norm", kv),
            **with_bias(f"{attention}.ky_norm", kv),
            f"{attention}.gate": (config.num_heads,),
            **{f"{ffn}.{w}.weight": (config.ffn_size, hidden) for w in ("w1", "w3")},
            f"{ffn}.w2.weight": (hidden, config.ffn_size),
            **{f"{block}.attention_norm{i}.weight": (hidden,) for i in (1, 2)},
            **{f"{block}.ffn_norm{i}.weight": (hidden,) for i in (1, 2)},
            f"{block}.attention_y_norm.weight": (text,),
            **with_bias(f"{block}.adaLN_modulation.1", 4 * hidden, embedding),
        }
    return shapes


def random_weights(config: LiteralConfig, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Draws every tensor so that no term of the forward pass vanishes and activations stay O(1)."""

    def draw(name, shape):
        if len(shape) == 2:
            return rng.normal(size=shape) / np.sqrt(shape[1])
        if name.endswith(".weight"):  # of a norm
            return rng.uniform(0.5, 1.5, size=shape)
        return rng.normal(size=shape) / 2

    return {name: draw(name, shape) for name, shape in released_shapes(config).items()}


def silu(x):
    return x / (1 + np.exp(-x))


def softmax(scores):
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return scores / scores.sum(axis=-1, keepdims=True)


def linear(weights, name, x):
    """(..., in) -> (..., out), with a bias where the release has one."""
    return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0)


def standardize(x, eps):
    return (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + eps)


def layer_norm(weights, name, x, eps):
    return standardize(x, eps) * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def rms_norm(weights, name, x, eps):
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps) * weights[f"{name}.weight"]


def grid(F, H, W, p):
    """(N, 3): view, patch row and patch column of every token, in the order of the tokens."""
    return np.array([(f, i, j) for f in range(F) for i in range(H // p) for j in range(W // p)])


def patchify(x, p):
    """(B, F, C, H, W) -> (B, N, p p C)."""
    B, F, _, H, W = x.shape
    patches = [
        x[:, f, :, i * p : (i + 1) * p, j * p : (j + 1) * p].transpose(0, 2, 3, 1).reshape(B, -1)
        for f, i, j in grid(F, H, W, p)
    ]
    return np.stack(patches, axis=1)


def unpatchify(tokens, shape, p):
    """(B, N, p p C) -> shape = (B, F, C, H, W): undoes `patchify`."""
    B, F, C, H, W = shape
    x = np.empty(shape)
    for token, (f, i, j) in enumerate(grid(F, H, W, p)):
        patch = tokens[:, token].reshape(B, p, p, C).transpose(0, 3, 1, 2)
        x[:, f, :, i * p : (i + 1) * p, j * p : (j + 1) * p] = patch
    return x


def embed_time(times, size):
    """(B, N) times in (0, 1000] -> (B, N, size): cosines, then sines, of periods up to 10000."""
    half = size // 2
    angles = times[..., None] * 10000.0 ** (-np.arange(half) / half)
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=-1)


def rotations(positions, head_dim, theta=10000.0, divide_by=1.0):
    """(N, 3) positions (view, row, column) -> (N, d/2) unit complex numbers."""
    pairs = head_dim // 6  # of each axis
    frequencies = theta ** (-np.arange(pairs) / pairs) / divide_by
    angles = [np.outer(positions[:, axis], frequencies) for axis in range(3)]
    return np.exp(1j * np.concatenate(angles, axis=1))


def rotate(x, turns):
    """Turns the channels (2i, 2i + 1) of x (B, N, heads, d) as one complex number."""
    turned = (x[..., 0::2] + 1j * x[..., 1::2]) * turns[None, :, None, :]
    return np.stack([turned.real, turned.imag], axis=-1).reshape(x.shape)


def attention(weights, name, config, x, text, text_mask, turns, softcap):
    """Of x (B, N, width) to all of x and to the text (B, L, width) that shows: (B, N, width)."""
    q = layer_norm(weights, f"{name}.q_norm", linear(weights, f"{name}.wq", x), 1e-5)
    k = layer_norm(weights, f"{name}.k_norm", linear(weights, f"{name}.wk", x), 1e-5)
    ky = layer_norm(weights, f"{name}.ky_norm", linear(weights, f"{name}.wk_y", text), 1e-6)
    v, vy = linear(weights, f"{name}.wv", x), linear(weights, f"{name}.wv_y", text)
    q, k, v, ky, vy = (y.reshape(*y.shape[:2], -1, config.head_dim) for y in (q, k, v, ky, vy))
    q, k = rotate(q, turns), rotate(k, turns)

    group = config.num_heads // config.num_kv_heads
    k, v = np.repeat(k, group, axis=2), np.repeat(v, group, axis=2)  # 0 0 0 0 1 1 1 1 ...
    ky, vy = np.tile(ky, (1, 1, group, 1)), np.tile(vy, (1, 1, group, 1))  # 0 1 2 3 ... 0 1 2 3 ...

    out = np.zeros(q.shape)
    for b, h in np.ndindex(q.shape[0], config.num_heads):
        scores = q[b, :, h] @ k[b, :, h].T / np.sqrt(config.head_dim)
        if softcap is not None:
            scores = softcap * np.tanh(scores / softcap)
        text_scores = q[b, :, h] @ ky[b, :, h].T / np.sqrt(config.head_dim)
        text_weights = softmax(np.where(text_mask[b], text_scores, -np.inf))
        gate = np.tanh(weights[f"{name}.gate"][h])
        out[b, :, h] = softmax(scores) @ v[b, :, h] + gate * (text_weights @ vy[b, :, h])
    return linear(weights, f"{name}.wo", out.reshape(x.shape))


def forward(
    weights,
    config,
    latents,  # (B, F, C, H, W)
    times,  # (B, F) in (0, 1000]
    text,  # (B, L, caption_channels), the encoder's states
    text_mask,  # (B, L), true where text counts; never all false
    softcap=None,  # bounds the scaled scores of self-attention, not those of text
    scale_factor=1.0,  # divides RoPE's frequencies if all times of the batch lie below
    scale_watershed=1.0,  # this, multiplies theta otherwise
):
    """Velocity (B, F, C, H, W)."""
    latents, times, text = (np.asarray(a, np.float64) for a in (latents, times, text))
    weights = {name: np.asarray(weight, np.float64) for name, weight in weights.items()}
    text_mask = np.asarray(text_mask, bool)
    (_, F, _, H, W), p, eps = latents.shape, config.patch_size, config.norm_eps
    assert {name: a.shape for name, a in weights.items()} == released_shapes(config)
    assert H % p == W % p == 0, f"{H} x {W} latents do not divide into patches of {p}."
    assert text_mask.any(axis=1).all(), "A row of text_mask shows no token."
    if times.max() < scale_watershed:
        turns = rotations(grid(F, H, W, p), config.head_dim, config.theta, divide_by=scale_factor)
    else:
        turns = rotations(grid(F, H, W, p), config.head_dim, config.theta * scale_factor)

    times = patchify(np.broadcast_to(times[:, :, None, None, None], latents.shape), p).mean(axis=-1)
    t = linear(weights, "t_embedder.mlp.0", embed_time(times, config.frequency_size))
    t = linear(weights, "t_embedder.mlp.2", silu(t))  # (B, N, embedding)
    pooled = (text * text_mask[:, :, None]).sum(axis=1) / text_mask.sum(axis=1)[:, None]
    pooled = linear(weights, "y_embedder.1", layer_norm(weights, "y_embedder.0", pooled, 1e-6))
    conditioning = silu(t + pooled[:, None, :])

    x = linear(weights, "x_embedder", patchify(latents, p))
    for block in (f"layers.{n}" for n in range(config.depth)):
        modulation = linear(weights, f"{block}.adaLN_modulation.1", conditioning)
        scale_msa, gate_msa, scale_mlp, gate_mlp = np.split(modulation, 4, axis=-1)
        y = rms_norm(weights, f"{block}.attention_norm1", x, eps) * (1 + scale_msa)
        states = rms_norm(weights, f"{block}.attention_y_norm", text, eps)
        y = attention(weights, f"{block}.attention", config, y, states, text_mask, turns, softcap)
        x = x + np.tanh(gate_msa) * rms_norm(weights, f"{block}.attention_norm2", y, eps)
        y = rms_norm(weights, f"{block}.ffn_norm1", x, eps) * (1 + scale_mlp)
        w1, w2, w3 = (f"{block}.feed_forward.w{i}" for i in (1, 2, 3))
        y = linear(weights, w2, silu(linear(weights, w1, y)) * linear(weights, w3, y))
        x = x + np.tanh(gate_mlp) * rms_norm(weights, f"{block}.ffn_norm2", y, eps)

    scale = linear(weights, "final_layer.adaLN_modulation.1", conditioning)
    tokens = linear(weights, "final_layer.linear", standardize(x, 1e-6) * (1 + scale))
    return unpatchify(tokens, latents.shape, p)

"""OneDiffusion's Next-DiT in plain PyTorch: torch and safetensors are all it needs.

The network of "One Diffusion to Generate Them All" (arXiv 2411.16318) with the parameter names of
the released checkpoint, so that its folder, and any exported to the same layout, loads as it is:

    from modeling_nextdit import NextDiT, sample
    model = NextDiT.from_pretrained("OneDiffusion", dtype=torch.bfloat16, device="cuda")
    noise = torch.randn(1, 2, 16, 64, 64, device="cuda")  # view 0 is made, view 1 is a depth map
    views = sample(model, noise, (states, mask), (no_states, no_mask), given={1: depth_latents})
    image = vae.decode((views[:, 0] / vae.config.scaling_factor).to(vae.dtype)).sample

Latents are SD3's, times the codec's scaling factor; states come from a T5 encoder, whose width is
`caption_channels`, with the tokenizer's mask.  Time runs from 1000 (noise) to 0 (clean), and the
network predicts noise minus clean.

The released half-precision path caps the scores of self-attention at 30 and the float32 path does
not; here `softcap` decides, whatever the precision: `model.softcap = None` takes the cap away.

SPDX-License-Identifier: Apache-2.0, which is the code's licence; weights may carry their own.
"""

import functools
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.functional import layer_norm, scaled_dot_product_attention, silu

WEIGHTS = "diffusion_pytorch_model.safetensors"
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
THETA = 10_000.0  # of the rotary positions
QUERIES = 1024  # whose capped scores are held at once: memory, not results
Context = tuple[Tensor, Tensor, float | None]  # rotation (N, d / 2), text's mask (B, L), soft cap


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type in which times, angles, norms, means and scores are computed."""
    return torch.promote_types(dtype, torch.float32)


def patchify(x: Tensor, patch: tuple[int, ...]) -> Tensor:
    """Tokens (B, N, pT pH pW C) of x (B, F, C, H, W): by view, row, column; channel fastest."""
    (b, f, c, h, w), (pt, ph, pw) = x.shape, patch
    x = x.reshape(b, f // pt, pt, c, h // ph, ph, w // pw, pw)
    return x.permute(0, 1, 4, 6, 2, 5, 7, 3).reshape(b, -1, pt * ph * pw * c)


def unpatchify(tokens: Tensor, grid: tuple[int, ...], patch: tuple[int, ...]) -> Tensor:
    """x (B, F, C, H, W) of tokens (B, N, pT pH pW C) that lie on a grid (views, rows, columns)."""
    (f, h, w), (pt, ph, pw) = grid, patch
    x = tokens.reshape(len(tokens), f, h, w, pt, ph, pw, -1).permute(0, 1, 4, 7, 2, 5, 3, 6)
    return x.reshape(len(tokens), f * pt, -1, h * ph, w * pw)


def timestep_embedding(times: Tensor, width: int = 256) -> Tensor:
    """Features (..., width) of times (...): the cosines first, then the sines."""
    pairs = torch.arange(width // 2, dtype=times.dtype, device=times.device)
    angles = times[..., None] * torch.exp(-math.log(10_000) * pairs / len(pairs))
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def rotations(
    grid: tuple[int, ...], head_width: int, like: Tensor, theta: float = THETA, shrink: float = 1.0
) -> Tensor:
    """Unit complex numbers (N, head_width / 2): a third each for view, row and column."""
    pairs = torch.arange(head_width // 6, dtype=like.dtype, device=like.device)
    frequencies = theta ** (-pairs / len(pairs)) / shrink
    parts = []
    for axis, length in enumerate(grid):
        angles = torch.outer(torch.arange(length).to(like), frequencies)
        shape = [length if axis == other else 1 for other in range(3)] + [len(pairs)]
        table = torch.polar(torch.ones_like(angles), angles)
        parts.append(table.reshape(shape).expand(*grid, -1))
    return torch.cat(parts, dim=-1).flatten(0, 2)


def rotated(x: Tensor, rotation: Tensor) -> Tensor:
    """x (B, heads, N, d), of which channels 2i and 2i + 1 are one complex number, turned."""
    pairs = torch.view_as_complex(x.to(rotation.real.dtype).unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotation).flatten(-2).to(x.dtype)


def attention(queries: Tensor, keys: Tensor, values: Tensor, softcap: float | None) -> Tensor:
    """Attention of all to all, (B, heads, N, d); scaled scores s become cap tanh(s / cap)."""
    if softcap is None:
        return scaled_dot_product_attention(queries, keys, values)
    keys, parts = keys.to(wide(keys.dtype)).transpose(-1, -2), []
    for part in queries.split(QUERIES, dim=-2):
        scores = part.to(keys.dtype) @ keys / math.sqrt(queries.shape[-1])
        weights = (softcap * torch.tanh(scores / softcap)).softmax(dim=-1)
        parts.append(weights.to(values.dtype) @ values)
    return torch.cat(parts, dim=-2)


def text_attention(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Attention to the text that a mask (B, L) lets through; zero where it lets nothing through."""
    some = mask.any(dim=-1)[:, None, None, None]
    seen = mask[:, None, None, :] | ~some  # without a single key the softmax would be 0 / 0
    return scaled_dot_product_attention(queries, keys, values, attn_mask=seen) * some


class RMSNorm(nn.Module):
    """x over its root mean square, rounded to x's type before the weight."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.eps, self.weight = eps, nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """The same shape and type."""
        y = x.to(wide(x.dtype))
        y = y * torch.rsqrt(y.square().mean(dim=-1, keepdim=True) + self.eps)
        return y.to(x.dtype) * self.weight


class Attention(nn.Module):
    """Tokens attend to all tokens and, with the same queries, to the text."""

    def __init__(self, width: int, heads: int, kv_heads: int, text_width: int, qk_norm: bool):
        super().__init__()
        self.head_width, linear = width // heads, functools.partial(nn.Linear, bias=False)
        kv_width = self.head_width * kv_heads
        self.wq, self.wo = linear(width, width), linear(width, width)
        self.wk, self.wv = linear(width, kv_width), linear(width, kv_width)
        self.wk_y, self.wv_y = linear(text_width, kv_width), linear(text_width, kv_width)
        self.gate = nn.Parameter(torch.zeros(heads))
        norm = nn.LayerNorm if qk_norm else nn.Identity  # over the heads together
        self.q_norm, self.k_norm = norm(width, eps=1e-5), norm(kv_width, eps=1e-5)
        self.ky_norm = norm(kv_width, eps=1e-6)

    def forward(self, x: Tensor, text: Tensor, context: Context) -> Tensor:
        """Tokens (B, N, width) from x (B, N, width) and the text (B, L, text_width)."""
        rotation, mask, softcap = context
        own = self.q_norm(self.wq(x)), self.k_norm(self.wk(x)), self.wv(x)
        other = self.ky_norm(self.wk_y(text)), self.wv_y(text)
        queries, keys, values, text_keys, text_values = (
            y.unflatten(-1, (-1, self.head_width)).transpose(1, 2) for y in (*own, *other)
        )
        queries, keys = rotated(queries, rotation), rotated(keys, rotation)
        # Query head h reads key head h // group of the tokens, but of the text h % kv_heads.
        group = queries.shape[1] // keys.shape[1]
        keys, values = (y.repeat_interleave(group, dim=1) for y in (keys, values))
        text_keys, text_values = (y.repeat(1, group, 1, 1) for y in (text_keys, text_values))
        found = text_attention(queries, text_keys, text_values, mask)
        found = torch.tanh(self.gate)[:, None, None] * found
        found = attention(queries, keys, values, softcap) + found
        return self.wo(found.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) w3 x)."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.w1, self.w3 = (nn.Linear(width, inner, bias=False) for _ in range(2))
        self.w2 = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        return self.w2(silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    """Attention and feed-forward, each between two norms, scaled and gated by the condition."""

    def __init__(self, attention: Attention, inner: int, condition: int, eps: float):
        super().__init__()
        width, text_width = attention.wq.in_features, attention.wk_y.in_features
        self.attention = attention
        self.feed_forward = FeedForward(width, inner)
        self.attention_norm1, self.attention_norm2 = RMSNorm(width, eps), RMSNorm(width, eps)
        self.ffn_norm1, self.ffn_norm2 = RMSNorm(width, eps), RMSNorm(width, eps)
        self.attention_y_norm = RMSNorm(text_width, eps)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(condition, 4 * width))

    def forward(self, x: Tensor, condition: Tensor, text: Tensor, context: Context) -> Tensor:
        """Tokens (B, N, width); the condition (B, N, c) is each token's own."""
        scale1, gate1, scale2, gate2 = self.adaLN_modulation(condition).chunk(4, dim=-1)
        y = self.attention_norm1(x) * (1 + scale1)
        y = self.attention(y, self.attention_y_norm(text), context)
        x = x + torch.tanh(gate1) * self.attention_norm2(y)
        y = self.feed_forward(self.ffn_norm1(x) * (1 + scale2))
        return x + torch.tanh(gate2) * self.ffn_norm2(y)


class NextDiT(nn.Module):
    """The denoiser; its keywords are the keys of the released config.json, others are ignored."""

    def __init__(
        self, *, hidden_size: int, depth: int, num_heads: int, num_kv_heads: int,
        caption_channels: int, in_channels: int, patch_size: Sequence[int],
        multiple_of: int, norm_eps: float, qk_norm: bool, norm_type: str = "rms",
        ffn_dim_multiplier: float | None = None, pred_sigma: bool = False,
        rotary_max_length: int = 128, rotary_max_length_t: int | None = None,
        softcap: float | None = 30.0, **_: object,
    ):  # fmt: skip
        super().__init__()
        if hidden_size % (6 * num_heads) or num_heads % num_kv_heads:
            heads = f"{hidden_size=}, {num_heads=}, {num_kv_heads=}"
            raise ValueError(f"expected heads of a width divisible by 6 in equal groups: {heads}")
        if norm_type != "rms" or pred_sigma:
            raise ValueError(f"expected 'rms' and no sigma: {norm_type=}, {pred_sigma=}")
        self.in_channels, self.patch_size, self.softcap = in_channels, tuple(patch_size), softcap
        self.head_width = hidden_size // num_heads
        self.limits = (rotary_max_length_t or rotary_max_length, *[rotary_max_length] * 2)
        inner = int((ffn_dim_multiplier or 1) * int(2 * (4 * hidden_size) / 3))
        inner = math.ceil(inner / multiple_of) * multiple_of
        size, features = min(hidden_size, 1024), math.prod(self.patch_size) * in_channels
        embedder = nn.Sequential(nn.Linear(256, size), nn.SiLU(), nn.Linear(size, size))
        norm = nn.LayerNorm(caption_channels, eps=1e-6)
        shape = (hidden_size, num_heads, num_kv_heads, caption_channels, qk_norm)
        blocks = [Block(Attention(*shape), inner, size, norm_eps) for _ in range(depth)]
        modulation = nn.Sequential(nn.SiLU(), nn.Linear(size, hidden_size))
        final = {"linear": nn.Linear(hidden_size, features), "adaLN_modulation": modulation}
        self.x_embedder = nn.Linear(features, hidden_size)
        self.t_embedder = nn.ModuleDict({"mlp": embedder})
        self.y_embedder = nn.Sequential(norm, nn.Linear(caption_channels, size))
        self.layers = nn.ModuleList(blocks)
        self.final_layer = nn.ModuleDict(final)

    def forward(
        self, latents: Tensor, timesteps: Tensor, text_states: Tensor, text_mask: Tensor,
        scale_factor: float = 1.0, scale_watershed: float = 1.0,
    ) -> Tensor:  # fmt: skip
        """Velocity (noise minus clean) of latents (B, F, C, H, W), in their shape and type.

        timesteps: 0 to 1000, of examples (B,), views (B, F), or values (B, F, C, H, W) to average.
        text_states, text_mask: (B, L, D) and (B, L), true where there is text; the rest is not
          read.  Where nothing is true, attention to the text and its mean (before norm) are 0.
        scale_factor: above 1 for more views than were trained.  Where the batch's largest time is
          below scale_watershed, positions are divided by it, elsewhere 10,000 is multiplied.
        """
        grid, dtype = self._grid(tuple(latents.shape)), self.x_embedder.weight.dtype
        if timesteps.ndim not in (1, 2, 5) or timesteps.shape != latents.shape[: timesteps.ndim]:
            wanted = f"the first, the first two or all of {tuple(latents.shape)}"
            raise ValueError(f"timesteps: expected {wanted}, found {tuple(timesteps.shape)}")
        times = timesteps.to(wide(dtype))
        times = times.reshape(times.shape + (1,) * (5 - times.ndim)).expand(latents.shape)
        times = patchify(times, self.patch_size).mean(dim=-1)
        below = scale_factor != 1 and timesteps.max() < scale_watershed
        factors = (THETA, scale_factor) if below else (THETA * scale_factor, 1.0)
        mask = text_mask.bool()
        context = (rotations(grid, self.head_width, times, *factors), mask, self.softcap)
        text = text_states.to(dtype).masked_fill(~mask[..., None], 0)
        pooled = text.to(times).sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp(min=1)
        condition = self.t_embedder["mlp"](timestep_embedding(times).to(dtype))
        condition = condition + self.y_embedder(pooled.to(dtype))[:, None]
        x = self.x_embedder(patchify(latents.to(dtype), self.patch_size))
        for layer in self.layers:
            x = layer(x, condition, text, context)
        x = layer_norm(x, x.shape[-1:], eps=1e-6)
        x = x * (1 + self.final_layer["adaLN_modulation"](condition))
        return unpatchify(self.final_layer["linear"](x), grid, self.patch_size).to(latents.dtype)

    def _grid(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Patches along views, rows and columns, which rotary positions must cover."""
        sides = list(zip(shape[1:2] + shape[3:], self.patch_size, self.limits, strict=False))
        fits = len(shape) == 5 and shape[2] == self.in_channels
        if not fits or any(side % size or side // size > limit for side, size, limit in sides):
            patches = f"(F, H, W) in at most {self.limits} patches of {self.patch_size}"
            wanted = f"(B, F, {self.in_channels}, H, W), {patches} (rotary positions end there)"
            raise ValueError(f"latents: expected {wanted}, found {shape}")
        return tuple(side // size for side, size, _ in sides)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, dtype: torch.dtype | None = None, device: str | None = None
    ) -> "NextDiT":
        """The model of a folder, or of its sub-folder `transformer`; dtype None: as it is stored.

        Reads config.json and the safetensors file or, where there is none, the shards that its
        index names; never a pickle.  ValueError, one line, names everything that does not fit.
        """
        inside = Path(folder) / "transformer"
        folder = inside if inside.is_dir() else inside.parent
        file, index = folder / "config.json", folder / f"{WEIGHTS}.index.json"
        files, readers = [folder / WEIGHTS], {}
        try:
            with torch.device("meta"):
                model = cls(**json.loads(file.read_text()))
            places = dict.fromkeys(model.state_dict(), WEIGHTS)
            if index.is_file() and not files[0].is_file():
                file = index
                places = dict(json.loads(index.read_text())["weight_map"])
                files = [folder / name for name in sorted(set(places.values()))]
            for file in files:  # the last one read is to blame
                readers[file.name] = safe_open(file, "pt")
        except (ArithmeticError, LookupError, OSError, SafetensorError, TypeError, ValueError) as e:
            raise ValueError(f"{file}: cannot be used: {type(e).__name__}: {e}") from e
        shapes = [(name, list(tensor.shape)) for name, tensor in model.state_dict().items()]
        expected = {(places.get(name, index.name), name): shape for name, shape in shapes}
        parts = {(place, n): r.get_slice(n) for place, r in readers.items() for n in [*r.keys()]}
        kinds = {key: part.get_dtype() for key, part in parts.items()}
        found = {k: p.get_shape() if kinds[k] in DTYPES else kinds[k] for k, p in parts.items()}
        faults = []
        for key in sorted(expected.keys() | found.keys()):
            wanted, there = expected.get(key, "nothing"), found.get(key, "nothing")
            if wanted != there:
                faults.append(f"{': '.join(key)}: expected {wanted}, found {there}")
        if faults:
            raise ValueError(f"{folder}: {len(faults)} tensors do not fit: {'; '.join(faults)}")
        dtype = dtype or functools.reduce(torch.promote_types, map(DTYPES.get, kinds.values()))
        tensors = {n: readers[p].get_tensor(n).to(device=device, dtype=dtype) for p, n in parts}
        model.load_state_dict(tensors, assign=True)
        return model.eval()


def shifted_sigmas(steps: int, tokens: int) -> list[float]:
    """Noise levels 1, ..., 0 of so many steps: the more tokens to make, the more steps near 1."""
    shift = math.exp(0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256))
    return [shift / (shift + i / (steps - i)) for i in range(steps)] + [0.0]  # of 1 - i / steps


@torch.no_grad()
def sample(
    model: NextDiT, noise: Tensor, text: tuple[Tensor, Tensor],
    negative: tuple[Tensor, Tensor] | None = None, given: Mapping[int, Tensor] | None = None,
    steps: int = 50, guidance: float = 4.0, **scaling: float,
) -> Tensor:  # fmt: skip
    """All views (B, F, C, H, W): given ones as they are, the others made from the noise.

    text, negative: states (B, L, D) and mask (B, L), equally long; negative None: no guidance.
    given: clean latents (B, C, H, W) by number of view; their time is the last step's.
    scaling: the network's scale_factor and scale_watershed.
    """
    given, views = dict(given or {}), range(noise.shape[1])
    made = [view for view in views if view not in given]
    if steps < 1 or not made or not given.keys() <= set(views):
        raise ValueError(f"expected views to make of {views} in {steps=}, found given={[*given]}")
    x = noise.to(wide(noise.dtype), copy=True)
    for view, clean in given.items():
        x[:, view] = clean
    sigmas = shifted_sigmas(steps, x[0, made, 0].numel() // math.prod(model.patch_size))
    both = [text] if negative is None else [negative, text]
    states, mask = (torch.cat(parts) for parts in zip(*both, strict=True))
    for sigma, following in itertools.pairwise(sigmas):
        times = [1000 * (sigmas[-2] if view in given else sigma) for view in views]
        times = torch.tensor(times, dtype=x.dtype, device=x.device).expand(len(both) * len(x), -1)
        velocity = model(torch.cat([x] * len(both)), times, states, mask, **scaling)
        if negative is not None:
            unguided, velocity = velocity.chunk(2)
            velocity = unguided + guidance * (velocity - unguided)
        x[:, made] += (following - sigma) * velocity[:, made]
    return x

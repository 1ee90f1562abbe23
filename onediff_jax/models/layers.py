"""The layers that Next-DiT and the text encoder are made of.

Parameters are float32 and named for the checkpoint; every layer computes in `dtype`, except the
float32 islands: norms, rotary angles, softmax and time embedding.  A matrix is stored [in, out] and
names its two axes; one table (`onediff_jax/sharding.py`) says where an axis lives.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, DTypeLike, Float, Int

from onediff_jax.models.norms import Norm
from onediff_jax.ops import attention, rope
from onediff_jax.ops.dims import TextStates
from onediff_jax.ops.layout import Layout
from onediff_jax.settings import Section, setting
from onediff_jax.sharding import Parallel

xavier = nn.initializers.xavier_uniform()
zeros = nn.initializers.zeros_init()
adapter_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # 1/sqrt(in), as PEFT

LORA = ("lora_a", "lora_b")  # names of an adapter's parameters: down, and up again
ADAPTED = ("wq", "wk", "wv", "wk_y", "wv_y", "wo", "w1", "w2", "w3")
ATTENDING = "attending"  # queries, keys and values, by their name for rematerialisation


@dataclasses.dataclass(frozen=True)
class LoraConfig(Section):
    """Low-rank adapters beside some matrices (arXiv 2106.09685): x W + (alpha / rank) (x A) B."""

    rank: int = setting(0, "of adapters, usually 4 to 128; 0: no adapters", binds="state", least=0)
    alpha: float = setting(16.0, "the adapters' output is scaled by alpha / rank", binds="state")
    targets: tuple[str, ...] = setting(
        ("wq", "wk", "wv", "wo"),
        "matrices of every block that get an adapter: attention's wq, wk, wv, wk_y, wv_y, wo, or "
        "feed-forward's w1, w2, w3",
        binds="state",
        choices=ADAPTED,
    )

    def adapts(self, name: str | None) -> bool:
        """Whether a matrix of that name has an adapter."""
        return self.rank > 0 and name in self.targets


class Dense(nn.Module):
    """x W (+ b), with the logical names of W's axes; with an adapter where `lora` has its name.

    Where devices split an axis of W, this device has its shard: a shard of columns gives a shard of
    the features, and the results of shards of rows are summed over the devices.
    """

    features: int  # of all devices together
    axes: tuple[str, str]
    use_bias: bool = False
    kernel_init: nn.initializers.Initializer = xavier
    bias_init: nn.initializers.Initializer = zeros
    dtype: DTypeLike = jnp.float32
    lora: LoraConfig = LoraConfig()
    parallel: Parallel = Parallel()
    tokens_last: bool = False  # the output is [*batch o n], not [*batch n o]

    @nn.compact
    def __call__(self, x: Float[Array, "*batch i"]) -> Float[Array, "..."]:
        """x W (+ b), in `dtype`."""
        rows, columns = map(self.parallel.group, self.axes)
        features = columns.share(self.features)
        init = nn.with_logical_partitioning(self.kernel_init, self.axes)
        kernel = self.param("kernel", init, (x.shape[-1], features))
        y = self.matmul(x, kernel)
        if self.lora.adapts(self.name):
            down, up = ((self.axes[0], "rank"), ("rank", self.axes[1]))
            init = nn.with_logical_partitioning(adapter_init, down)
            a = self.param(LORA[0], init, (x.shape[-1], self.lora.rank))
            init = nn.with_logical_partitioning(zeros, up)
            b = self.param(LORA[1], init, (self.lora.rank, features))
            low = self.matmul(x.astype(self.dtype) @ a.astype(self.dtype), b)
            y = y + low * (self.lora.alpha / self.lora.rank)
        y = rows.sum(y)
        if self.use_bias:
            init = nn.with_logical_partitioning(self.bias_init, self.axes[1:])
            bias = self.param("bias", init, (features,)).astype(self.dtype)
            y = y + (bias[:, None] if self.tokens_last else bias)
        return y

    def matmul(self, x, kernel):
        """x W, with the axes in the order that `tokens_last` asks for."""
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        if not self.tokens_last:
            return x @ kernel
        # With this order of operands the compiler stores tokens last as well: no transpose.
        y = jax.lax.dot_general(kernel, x, (((0,), (x.ndim - 1,)), ((), ())))
        return jnp.moveaxis(y, 0, -2)


def rms_norm(epsilon: float, axis: str, name: str) -> Norm:
    """RMS normalisation with a weight, float32 out."""
    return Norm(epsilon, axis, name=name)


def layer_norm(
    epsilon: float,
    axis: str,
    name: str,
    affine: bool = True,
    parallel: Parallel = Parallel(),  # noqa: B008
    tokens_last: bool = False,
) -> Norm:
    """Layer normalisation over all devices that share the axis, float32 out."""
    group, place = parallel.group(axis), -2 if tokens_last else -1
    return Norm(epsilon, axis, True, affine, place, group, name=name)


def unchanged(parameters: Any) -> Any:
    """The `gather` of a stack whose parameters are whole already."""
    return parameters


def gathering(layer: type[nn.Module], gather: Callable, initial: bool) -> type[nn.Module]:
    """A stack's layer whose parameters go through `gather` when it is entered."""

    def gathered(collections):
        return {name: gather(variables) for name, variables in collections.items()}

    return nn.map_variables(layer, "params", gathered, init=initial)


def time_features(times: Float[Array, "*batch"], width: int) -> Float[Array, "*batch width"]:
    """cos, then sin, of `times` at width/2 frequencies from 1 towards 1/10000; float32."""
    frequencies = 10_000.0 ** -(jnp.arange(width // 2, dtype=jnp.float32) / (width // 2))
    turned = times.astype(jnp.float32)[..., None] * frequencies
    return jnp.concatenate([jnp.cos(turned), jnp.sin(turned)], -1)


def of_tiles(values: Array, layout: Layout) -> Array:
    """Values of views [b v ...], repeated for each tile of a view: [b t ...]."""
    parts = [
        jnp.repeat(values[:, views], tokens // layout.tile, 1)
        for tokens, views in layout.equal_views
    ]
    return jnp.concatenate(parts, 1)


def spread(values: Array, layout: Layout) -> Array:
    """Values of views [b v ...], repeated for each token of a view: [b n ...]."""
    return jnp.repeat(of_tiles(values, layout), layout.tile, 1)


class Attention(nn.Module):
    """Attention of a row's tokens over their own example and its prompt.

    Inside, the layout is [batch, heads, channels, tokens], so that the head split is a
    free reshape.

    Both share the queries and `wo`.  Query and key norms run over all heads together.  Query
    head i reads key head i // (heads/kv_heads) of the row and text key head i mod kv_heads; text
    enters through a tanh gate per head, before `wo`.

    Devices can share the heads, in blocks, and the tokens of a row's only slot ("n").
    """

    heads: int  # of all devices together
    kv_heads: int
    softcap: float | None
    backend: str
    dtype: DTypeLike
    lora: LoraConfig = LoraConfig()
    parallel: Parallel = Parallel()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n d"],
        text: TextStates,
        turn: Float[Array, "b half n"],
        segments: tuple[Int[Array, "b n"], Int[Array, "b n"], Int[Array, "b e l"]],
        layout: Layout,
    ) -> Float[Array, "b n d"]:
        """`segments`: the example of every query, key and text token (-1: padding)."""
        width, head = x.shape[-1], x.shape[-1] // self.heads
        kv_width = head * self.kv_heads
        dense = functools.partial(Dense, dtype=self.dtype, lora=self.lora, parallel=self.parallel)

        def project(features, axis, name, source=x):
            axes = ("text" if source is text else "embed", axis)
            return dense(features, axes, tokens_last=True, name=name)(source)

        def norm(epsilon, axis, name):
            return layer_norm(epsilon, axis, name, parallel=self.parallel, tokens_last=True)

        def split(y):
            return rearrange(y.astype(self.dtype), "... (k h) n -> ... k h n", h=head)

        q = split(norm(1e-5, "heads", "q_norm")(project(width, "heads", "wq")))
        k = split(norm(1e-5, "kv", "k_norm")(project(kv_width, "kv", "wk")))
        v = split(project(kv_width, "kv", "wv"))
        text_k = split(norm(1e-6, "kv", "ky_norm")(project(kv_width, "kv", "wk_y", text)))
        text_v = split(project(kv_width, "kv", "wv_y", text))
        text_k, text_v = self.text_heads(text_k), self.text_heads(text_v)
        q, k = rope.rotate(q, turn), rope.rotate(k, turn)
        q, k, v, text_k, text_v = (checkpoint_name(y, ATTENDING) for y in (q, k, v, text_k, text_v))

        init = nn.with_logical_partitioning(zeros, ("heads",))
        gate = self.param("gate", init, q.shape[1:2])
        gate = jnp.tanh(gate)[:, None]
        q_segments, k_segments, text_segments = segments
        backend = self.backend
        if self.is_initializing():  # only shapes matter then, so any backend will do
            backend = "chunked"
        attended = []
        for run in layout.runs:
            # Equal slots become one batch, so no logits between slots are computed.
            def tokens(y, run=run):
                slots = jnp.split(y[..., run.tokens], run.count, -1)
                return jnp.moveaxis(jnp.concatenate(slots), -1, 1)

            def keys(y, tokens=tokens):
                return self.parallel.group("n").gather(tokens(y), 1)

            def prompts(y, run=run):
                return rearrange(
                    y[:, run.examples], "b (s e) ... l -> (s b) (e l) ...", s=run.count
                )

            seen = attention.attend(
                tokens(q),
                keys(k),
                keys(v),
                tokens(q_segments),
                keys(k_segments),
                softcap=self.softcap,
                backend=backend,
            )
            read = attention.attend(
                tokens(q),
                prompts(text_k),
                prompts(text_v),
                tokens(q_segments),
                prompts(text_segments),
                tiled=True,
                backend=backend,
            )
            together = seen + (gate * read).astype(self.dtype)
            together = rearrange(together, "b n k h -> b n (k h)")
            attended.extend(jnp.split(together, run.count))
        return dense(width, ("heads", "embed"), name="wo")(jnp.concatenate(attended, 1))

    def text_heads(self, y: Float[Array, "b e g h l"]) -> Float[Array, "b e g2 h l"]:
        """The text key heads that this device's query heads read, gathered from all devices."""
        group = self.parallel.group("kv")
        y, mine = group.gather(y, -3), group.share(self.heads)
        if mine % self.kv_heads == 0:
            return y  # the device's first query head reads text key head 0
        read = (group.index * mine + jnp.arange(mine)) % self.kv_heads
        return jnp.take(y, read, axis=-3)


class SwiGLU(nn.Module):
    """w2(silu(w1 x) * w3 x)."""

    hidden: int  # of all devices together
    dtype: DTypeLike
    lora: LoraConfig = LoraConfig()
    parallel: Parallel = Parallel()

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        """The mixed features, in `dtype`."""
        dense = functools.partial(Dense, dtype=self.dtype, lora=self.lora, parallel=self.parallel)
        w1 = dense(self.hidden, ("embed", "mlp"), name="w1")
        w2 = dense(x.shape[-1], ("mlp", "embed"), name="w2")
        w3 = dense(self.hidden, ("embed", "mlp"), name="w3")
        return w2(jax.nn.silu(w1(x)) * w3(x))

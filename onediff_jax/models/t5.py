"""The T5 v1.1 encoder (gated GELU, relative positions in buckets): prompts to states.

A small one is trained jointly with the denoiser on the data set's own vocabulary; a large one is
the text encoder of the released weights.  As in T5, attention logits are not scaled, the first
layer's bias serves all layers, and norms, softmax and bias are float32.
"""

import dataclasses
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from onediff_jax.models.layers import Dense, gathering, rms_norm, unchanged
from onediff_jax.settings import FLOATS, Section, setting
from onediff_jax.sharding import Parallel


@dataclasses.dataclass(frozen=True)
class T5Config(Section):
    """Shape of the encoder; the defaults are those of T5 v1.1 XL."""

    width: int = setting(2048, "channels of a token", binds="weights", least=1)
    depth: int = setting(24, "layers", binds="weights", least=1)
    heads: int = setting(32, "heads", binds="weights", least=1)
    head_width: int = setting(64, "channels of a head", binds="weights", least=1)
    hidden: int = setting(5120, "feed-forward width", binds="weights", least=1)
    buckets: int = setting(32, "of relative positions", binds="weights", least=4)
    farthest: int = setting(128, "distances from here on share a bucket", binds="weights", least=1)
    dtype: str = setting("bfloat16", "of activations", choices=FLOATS)
    unroll: int = setting(1, "layers in an iteration of the scan", least=1)


def bucket_of_distance(length: int, buckets: int, farthest: int) -> Int[np.ndarray, "l l"]:
    """Bucket of key minus query position: half for each sign, exact near, logarithmic far."""
    distance = np.arange(length)[None, :] - np.arange(length)[:, None]
    half = buckets // 2
    near = half // 2
    far = np.log(np.maximum(np.abs(distance), 1) / near) / math.log(farthest / near) * (half - near)
    steps = np.where(
        np.abs(distance) < near, np.abs(distance), np.minimum(near + far.astype(int), half - 1)
    )
    return steps + half * (distance > 0)


class T5Layer(nn.Module):
    """Attention and gated feed-forward, each after a norm and around a residual."""

    config: T5Config
    parallel: Parallel = Parallel()

    @nn.compact
    def __call__(self, x: Float[Array, "b l c"], bias, seen):
        """The states after the layer, and None for `nn.scan`, which would stack it."""
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        inner = config.heads * config.head_width

        def dense(features, axes, std, name):
            init = nn.initializers.normal(std)
            return Dense(
                features, axes, False, init, dtype=dtype, parallel=self.parallel, name=name
            )

        y = rms_norm(1e-6, "text", "attention_norm")(x)
        stds = {"q": (config.width * config.head_width) ** -0.5, "k": config.width**-0.5}
        q, k, v = (
            rearrange(
                dense(inner, ("text", "heads"), stds.get(name, config.width**-0.5), name)(y),
                "b l (k h) -> b l k h",
                h=config.head_width,
            )
            for name in "qkv"
        )
        logits = jnp.einsum("bnkh,bmkh->bknm", q, k, preferred_element_type=jnp.float32) + bias
        shares = jax.nn.softmax(jnp.where(seen, logits, -1e30), -1).astype(dtype)
        y = rearrange(jnp.einsum("bknm,bmkh->bnkh", shares, v), "b l k h -> b l (k h)")
        x = x + dense(config.width, ("heads", "text"), inner**-0.5, "o")(y)

        y = rms_norm(1e-6, "text", "mlp_norm")(x)
        gate = dense(config.hidden, ("text", "mlp"), config.width**-0.5, "wi_0")(y)
        value = dense(config.hidden, ("text", "mlp"), config.width**-0.5, "wi_1")(y)
        y = nn.gelu(gate, approximate=True) * value
        return x + dense(config.width, ("mlp", "text"), config.hidden**-0.5, "wo")(y), None


class T5Encoder(nn.Module):
    """Token ids to states.

    `gather` is applied to a layer's parameters on entry, as in `NextDiT`.
    """

    config: T5Config
    vocabulary: int
    gather: Callable = unchanged
    parallel: Parallel = Parallel()

    @nn.compact
    def __call__(
        self, ids: Int[Array, "*batch l"], mask: Bool[Array, "*batch l"]
    ) -> Float[Array, "*batch l c"]:
        """States of every token, in the config's dtype; masked tokens (false) are seen by none."""
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        *batch, length = ids.shape
        ids, mask = ids.reshape(-1, length), mask.reshape(-1, length)
        init = nn.with_logical_partitioning(nn.initializers.normal(1.0), ("vocabulary", "text"))
        table = self.param("embedding", init, (self.vocabulary, config.width))
        x = jnp.take(table, ids, axis=0).astype(dtype)
        init = nn.with_logical_partitioning(
            nn.initializers.normal(config.width**-0.5), (None, "heads")
        )
        heads = self.parallel.group("heads").share(config.heads)
        biases = self.param("relative_bias", init, (config.buckets, heads))
        buckets = bucket_of_distance(length, config.buckets, config.farthest)
        bias = rearrange(biases[buckets], "n m k -> k n m")[None]
        layers = nn.scan(
            gathering(T5Layer, self.gather, self.is_initializing()),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=config.depth,
            unroll=config.unroll,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(config, self.parallel, name="layers")
        x, _ = layers(x, bias, mask[:, None, None, :])
        return rms_norm(1e-6, "text", "final_norm")(x).astype(dtype).reshape(*batch, length, -1)

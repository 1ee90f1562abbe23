"""Root mean square and layer normalisation, in float32, over an axis that devices may share.

Their gradient is written by hand: what autodiff makes of a variance reads its input several times
more.  Statistics have a name, so that a rematerialised block can keep them, a number a token.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from onediff_jax.sharding import ALONE, Group

STATISTICS = "statistics"  # as rematerialisation knows them


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def normalised(
    x: Float[Array, "*shape"], epsilon: float, axis: int, centred: bool, group: Group
) -> Float[Array, "*shape"]:
    """`x`, less its mean if `centred`, over the root of its mean square (+ epsilon); float32."""
    return _forward(x, epsilon, axis, centred, group)[0]


def _forward(x, epsilon, axis, centred, group):
    """What `normalised` gives, and what its gradient needs."""
    wide = x.astype(jnp.float32)
    mean = checkpoint_name(mean_of(wide, axis, group), STATISTICS) if centred else 0.0
    variance = mean_of(jnp.square(wide - mean), axis, group)
    scale = checkpoint_name(jax.lax.rsqrt(variance + epsilon), STATISTICS)
    return (wide - mean) * scale, (x, mean, scale)


def _backward(epsilon, axis, centred, group, kept, d):
    """The cotangent of `x`: that of the result, less what moves the statistics."""
    del epsilon
    x, mean, scale = kept
    made = (x.astype(jnp.float32) - mean) * scale
    free = d - made * mean_of(d * made, axis, group)
    if centred:
        free = free - mean_of(d, axis, group)
    return ((free * scale).astype(x.dtype),)


normalised.defvjp(_forward, _backward)


def mean_of(x: Array, axis: int, group: Group) -> Array:
    """The mean over an axis that the devices of a group share."""
    return group.sum(x.sum(axis, keepdims=True)) / (x.shape[axis] * group.size)


class Norm(nn.Module):
    """Normalisation of an axis, and a weight for each of its features; with `centred` a bias too.

    `name_of_axis` is what sharding knows it by.
    """

    epsilon: float
    name_of_axis: str
    centred: bool = False
    affine: bool = True
    axis: int = -1
    group: Group = ALONE

    @nn.compact
    def __call__(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """The normalised features, float32."""
        y = normalised(x, self.epsilon, self.axis, self.centred, self.group)
        features = [1] * x.ndim
        features[self.axis] = x.shape[self.axis]

        def param(name, init):
            init = nn.with_logical_partitioning(init, (self.name_of_axis,))
            return self.param(name, init, (x.shape[self.axis],)).reshape(features)

        if self.affine:
            y = y * param("scale", nn.initializers.ones_init())
            if self.centred:
                y = y + param("bias", nn.initializers.zeros_init())
        return y

"""The networks of a run: the denoiser, the text encoder whose states it reads, and the codec."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, DTypeLike, Float, Int, UInt8

from onediff_jax.models.nextdit import NextDiT
from onediff_jax.models.t5 import T5Encoder
from onediff_jax.models.vae import AutoencoderKL
from onediff_jax.ops.layout import Layout, Slot
from onediff_jax.ops.patches import patchify, unpatchify
from onediff_jax.sharding import Group, Parallel, gather_params, specs_of


class Networks(NamedTuple):
    """The modules of a run; `params` is {"denoiser": ..., "text": ...}, and "codec" where it is.

    The networks named in `pretrained` are released ones: their parameters never change and are in
    no state.  The others are trained together.
    """

    denoiser: NextDiT
    text: T5Encoder
    codec: AutoencoderKL | None = None  # None: images are encoded before they come here
    pretrained: tuple[str, ...] = ()
    sampled: bool = True  # latents are drawn from the codec's distribution; else its means

    def shared(self, gather: Callable[[str, Any], Any], parallel: Parallel) -> "Networks":
        """The networks as one of several devices has them.

        `gather(name, parameters)` brings together the parameters of a layer of a network's stack.
        """

        def on(name: str, network: Any) -> Any:
            return network.clone(gather=functools.partial(gather, name), parallel=parallel)

        return self._replace(denoiser=on("denoiser", self.denoiser), text=on("text", self.text))

    def on_mesh(
        self, mesh: Mesh, groups: tuple[Group, ...], sums: DTypeLike | None = None
    ) -> "OnMesh":
        """The networks as every device of a mesh has them inside `jax.shard_map`.

        `groups` are the devices among which a network's own work is split, `sums` the type in which
        gradients of layers are summed over shards, if it is wider than the network's.
        """
        specs = specs_of(self._init, mesh)
        dtypes = {"denoiser": self.denoiser.config.dtype, "text": self.text.config.dtype}

        def gather(name: str, layer: Any) -> Any:
            of_layer = jax.tree.map(lambda spec: P(*spec[1:]), specs[name]["layers"])
            return gather_params(layer, of_layer, dtypes[name], sums)

        return OnMesh(self.shared(gather, Parallel(groups)), specs)

    @property
    def split_sizes(self) -> dict[str, int]:
        """Sizes of the networks that the `tensor` axis splits, by the setting that gives them."""
        denoiser, text = self.denoiser.config, self.text.config
        return {
            "model.heads": denoiser.heads,
            "model.kv_heads": denoiser.kv_heads,
            "the feed-forward width of the model": denoiser.hidden,
            "text.encoder.heads": text.heads,
            "text.encoder.hidden": text.hidden,
        }

    def states(
        self, params: Any, ids: Int[Array, "b e l"], mask: Bool[Array, "b e l"]
    ) -> Float[Array, "b e l c"]:
        """Text states of token ids."""
        return self.text.apply({"params": params["text"]}, ids, mask)

    def velocity(self, params: Any, *inputs: Any) -> Float[Array, "b n p"]:
        """The denoiser's velocity; `inputs` as `NextDiT` takes them."""
        return self.denoiser.apply({"params": params["denoiser"]}, *inputs)

    def encoded(
        self, params: Any, pixels: UInt8[Array, "b n q"], layout: Layout
    ) -> tuple[Float[Array, "b n p"], Float[Array, "b n p"]]:
        """Means and stds of every view's latents, as patches; every view is a square.

        A view of T tokens has the largest square number of them at its beginning, as
        `fitting.grid_for` cuts images where `square` is asked for.
        """
        codec, patch, (b, _, _) = self.codec, self.denoiser.config.patch, pixels.shape
        assert codec, "only images of a released autoencoder are encoded here"
        means, stds, token = [], [], 0
        for tokens, slots in layout.equal_views:
            views, side = slots.stop - slots.start, math.isqrt(tokens)
            held = pixels[:, token : token + views * tokens]
            held = rearrange(held, "b (v t) q -> b v t q", v=views)[:, :, : side**2]
            images = unpatchify(held, side, patch * codec.factor)

            def encoded(images):
                posterior = codec.encode(params["codec"], images / 127.5 - 1)
                return codec.normalised_moments(posterior)

            # One view after the other, since activations of images are large.
            moments = jax.lax.map(encoded, rearrange(images, "b v ... -> v b ..."))
            for found, values in zip((means, stds), moments, strict=True):
                patches = rearrange(patchify(values, patch), "v b t p -> b v t p")
                padding = [(0, 0), (0, 0), (0, tokens - side**2), (0, 0)]
                found.append(jnp.pad(patches, padding).reshape(b, views * tokens, -1))
            token += views * tokens
        return jnp.concatenate(means, 1), jnp.concatenate(stds, 1)

    def init(self, key: Array) -> Any:
        """Fresh parameters of what is trained, boxed; shapes do not depend on the layout."""
        return {name: each for name, each in self._init(key).items() if name not in self.pretrained}

    def init_pretrained(self, key: Array) -> Any:
        """Parameters of what is not, boxed with their axis names; for their shapes."""
        return {name: each for name, each in self._init(key).items() if name in self.pretrained}

    def _init(self, key: Array) -> Any:
        for_denoiser, for_text = jax.random.split(key)
        layout, config = Layout((Slot(1, 1),)), self.denoiser.config
        flags, integers = jnp.ones((1, 1), bool), jnp.zeros((1, 1), int)
        denoiser = self.denoiser.init(
            for_denoiser,
            jnp.zeros((1, 1, config.features)),
            jnp.ones((1, 1)),
            jnp.zeros((1, 1, 3), int),
            integers,
            flags,
            jnp.zeros((1, 1, 1, self.text.config.width)),
            flags[..., None],
            layout,
        )
        text = self.text.init(for_text, integers, flags)
        params = {"denoiser": denoiser["params"], "text": text["params"]}
        if self.codec:
            params["codec"] = self.codec.init(key)
        return params


class OnMesh(NamedTuple):
    """Networks that gather the parameters of their stacked layers themselves."""

    networks: Networks
    specs: Any  # how all parameters are sharded, by network

    def whole(self, params: Any) -> Any:
        """Parameters of some networks, with those outside of stacks gathered."""
        return {
            name: {
                part: leaf if part == "layers" else gather_params(leaf, self.specs[name][part])
                for part, leaf in network.items()
            }
            for name, network in params.items()
        }

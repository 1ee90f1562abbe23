"""What is trained together: the denoiser and the text encoder whose states it reads."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from onediff_jax.models.nextdit import NextDiT, NextDiTConfig
from onediff_jax.models.t5 import T5Config, T5Encoder
from onediff_jax.ops.layout import Layout, Slot


class Networks(NamedTuple):
    """The modules that are trained together; `params` is {"denoiser": ..., "text": ...}."""

    denoiser: NextDiT
    text: T5Encoder

    def states(
        self, params: Any, ids: Int[Array, "b e l"], mask: Bool[Array, "b e l"]
    ) -> Float[Array, "b e l c"]:
        """Text states of token ids."""
        return self.text.apply({"params": params["text"]}, ids, mask)

    def velocity(self, params: Any, *inputs: Any) -> Float[Array, "b n p"]:
        """The denoiser's velocity; `inputs` as `NextDiT` takes them."""
        return self.denoiser.apply({"params": params["denoiser"]}, *inputs)

    def init(self, key: Array) -> Any:
        """Fresh parameters, boxed with their axis names; shapes do not depend on the layout."""
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
        return {"denoiser": denoiser["params"], "text": text["params"]}


def networks_of(model: NextDiTConfig, text: T5Config, vocabulary: int, remat: str) -> Networks:
    """The modules of a run, for a vocabulary of so many pieces."""
    return Networks(NextDiT(model, remat), T5Encoder(text, vocabulary))

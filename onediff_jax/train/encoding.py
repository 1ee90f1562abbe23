"""Examples encoded ahead of training: images as distributions of latents, prompts as tokens."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from onediff_jax.data.codecs import Codec
from onediff_jax.data.example import EncodedImage, EncodedPrompt, Placed
from onediff_jax.data.sources.shards import HALF
from onediff_jax.data.text import Tokenizer
from onediff_jax.models.networks import Networks
from onediff_jax.sampling.generate import ImageCodec


class Encoding(NamedTuple):
    """What turns examples into encoded ones."""

    codec: Codec
    tokenizer: Tokenizer
    networks: Networks
    params: Mapping[str, Any]
    states: bool
    batch: int  # images, or prompts, that are encoded together

    def __call__(self, several: Sequence[Placed]) -> list[Placed]:
        """The examples with their images and prompts encoded."""
        images = [v for placed in several for v in placed.example.views if is_image(v)]
        encoded = iter(self.images(images))
        prompts = self.prompts([placed.example.prompt for placed in several])
        made = []
        for placed, prompt in zip(several, prompts, strict=True):
            views = (next(encoded) if is_image(v) else v for v in placed.example.views)
            example = placed.example._replace(views=tuple(views), prompt=prompt)
            made.append(placed._replace(example=example))
        return made

    def images(self, images: Sequence[np.ndarray]) -> list[EncodedImage]:
        """Images encoded, those of one shape together."""
        if not isinstance(self.codec, ImageCodec):
            return [EncodedImage(self.codec.encode(image), None) for image in images]
        found: dict[int, EncodedImage] = {}
        for shape in {image.shape for image in images}:
            numbers = [i for i, image in enumerate(images) if image.shape == shape]
            for part in self.batches(numbers):
                moments = self.codec.moments(np.stack([images[n] for n in part]))
                found |= dict(zip(part, map(EncodedImage, *moments), strict=True))
        return [found[i] for i in range(len(images))]

    def prompts(self, prompts: Sequence[str]) -> list[EncodedPrompt]:
        """Prompts as ids, or as states of the text encoder, of the tokens that count."""
        ids, masks = map(np.stack, zip(*map(self.tokenizer, prompts), strict=True))
        found = dict(enumerate(ids))
        for part in self.batches(range(len(ids))) if self.states else ():
            states = _states(self.networks, self.params, ids[part][:, None], masks[part][:, None])
            found |= dict(zip(part, np.asarray(states)[:, 0].astype(HALF), strict=True))
        counted = (found[i][mask] for i, mask in enumerate(masks))
        return list(map(EncodedPrompt, prompts, counted))

    def batches(self, numbers: Sequence[int]) -> Iterator[list[int]]:
        """The numbers in full batches, for one program: the last one repeats its last number."""
        for i in range(0, len(numbers), self.batch):
            part = list(numbers[i : i + self.batch])
            yield part + part[-1:] * (self.batch - len(part))


@functools.partial(jax.jit, static_argnums=0)
def _states(networks: Networks, params: Any, ids: Any, mask: Any) -> Any:
    return networks.states(params, ids, mask)


def is_image(view: Any) -> bool:
    """Whether a view is an image, not a camera."""
    return isinstance(view, np.ndarray)

"""What flows through the data room: records in, examples out.

A record is what a data set stores for one image, scene or subject: a mapping whose values may be
read from disk when they are asked for.  An example is what a task makes of it: views and a prompt.
Images are uint8 [h w 3] until a codec sees them.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypedDict

import numpy as np
from jaxtyping import Float, Integer, UInt8

from onediff_jax.ops.cameras import Camera

Caption = str | Sequence[str]  # one, or several of which every example has one
RGB = UInt8[np.ndarray, "_ _ 3"]  # height and width, not bound: images may differ


class EncodedImage(NamedTuple):
    """An image as a codec's normal distribution of every latent, normalised."""

    mean: Float[np.ndarray, "H W c"]
    std: Float[np.ndarray, "H W c"] | None  # None: the codec is certain


class EncodedPrompt(NamedTuple):
    """A prompt, and the ids of its tokens up to the end token, or an encoder's states of these."""

    text: str
    tokens: Integer[np.ndarray, " l"] | Float[np.ndarray, "l c"]


# A camera becomes rays at the resolution of latents.
View = RGB | Camera | EncodedImage


class Record(TypedDict, total=False):
    """One image, scene or subject; which fields there are depends on the source.

    Places in an image are in pixels, x right and y down; the first pixel's centre is (0.5, 0.5).
    """

    image: RGB
    caption: Caption
    pictures: Mapping[str, RGB]  # views of the image that need not be made, by their names
    depth: Float[np.ndarray, "h w"]  # along the optical axis, any unit; infinite: nothing there
    instances: Integer[np.ndarray, "h w"]  # 0: background; i: the i-th of `names`
    boxes: Float[np.ndarray, "n 4"]  # of the i-th of `names`: left, top, right, bottom
    names: tuple[str, ...]  # class of every instance
    keypoints: Float[np.ndarray, "people 17 3"]  # COCO's: x, y, and 0 absent, 1 hidden, 2 seen
    colors: tuple[str, ...]  # of every instance
    places: tuple[str, ...]  # of every instance in the image: left, middle or right
    edited: RGB  # the image after `instruction`
    instruction: str
    references: Sequence[RGB]  # the person of the image in other images
    reference_captions: Sequence[Caption]
    item: str  # name of the thing that the image is about
    item_references: Sequence[RGB]  # that thing in other images
    item_captions: Sequence[Caption]
    frames: Sequence[RGB]  # of one scene, by the cameras
    cameras: Sequence[Camera]


def texts_of(caption: Caption) -> tuple[str, ...]:
    """The texts of a caption, one or several."""
    return (caption,) if isinstance(caption, str) else tuple(caption)


class Example(NamedTuple):
    """Views of one size in their task's order (target first), and the prompt with its token."""

    task: str
    views: tuple[View, ...]
    prompt: str | EncodedPrompt

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of every view; the first is an image, and here not an encoded one."""
        return self.views[0].shape[:2]


class Placed(NamedTuple):
    """An example, the number of its source, and how many records at fault it stands in for."""

    example: Example
    source: int
    faults: int

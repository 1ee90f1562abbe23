"""What data sets store, and what tasks make of it: records, their fields, and examples.

A record is what a data set stores for one image, scene or subject: a mapping whose values may be
read from disk when they are asked for.  An example is what a task makes of it: views and a prompt.
Images are uint8 [h w 3] until a codec sees them.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

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


Kind = Literal[
    "image", "images", "named images", "array", "cameras", "text", "texts",
    "caption", "captions",  # texts that may be empty, or several
]  # fmt: skip


class Field(NamedTuple):
    """What a field of a record holds, and how it follows when the record's image is cropped.

    Arrays have a shape and a type, lists a length.  Axes of the same name are equally long: "h" and
    "w" are those of the record's image, "_" is of any length.
    """

    kind: Kind
    shape: tuple[str | int, ...] = ()
    dtype: Literal["", "float", "integer"] = ""
    crop: Literal["", "resample", "nearest", "boxes", "keypoints", "intrinsics"] = ""


# What is in a record and in which form; which fields there are depends on the source.  Places in an
# image are in pixels, x right and y down; the first pixel's centre is (0.5, 0.5).
FIELDS = {
    "image": Field("image", crop="resample"),
    "caption": Field("caption"),
    # Views of the image that need not be made, by their names.
    "pictures": Field("named images", crop="resample"),
    # Along the optical axis, above 0, in any unit; infinite: nothing is there.
    "depth": Field("array", ("h", "w"), "float", "nearest"),
    # Instances: 0 is background, i the i-th of `names`, which are their classes.
    "instances": Field("array", ("h", "w"), "integer", "nearest"),
    "names": Field("texts", ("names",)),
    "colors": Field("texts", ("names",)),
    "places": Field("texts", ("names",)),  # left, middle or right
    # Left, top, right, bottom.
    "boxes": Field("array", ("names", 4), "float", "boxes"),
    # People's, COCO's: x, y, and 0 absent, 1 hidden, 2 seen.
    "keypoints": Field("array", ("_", 17, 3), "float", "keypoints"),
    # The image after an instruction.
    "edited": Field("image", crop="resample"),
    "instruction": Field("text"),
    # The person of the image in other images.
    "references": Field("images", ("references",), crop="resample"),
    "reference_captions": Field("captions", ("references",)),
    # The thing that the image is about: its name, and other images of it.
    "item": Field("text"),
    "item_references": Field("images", ("items",), crop="resample"),
    "item_captions": Field("captions", ("items",)),
    # Images of one scene, and the cameras that took them.
    "frames": Field("images", ("frames",), crop="resample"),
    "cameras": Field("cameras", ("frames",), crop="intrinsics"),
}

# One image, scene or subject: values by the names of `FIELDS`, each as its field says.
Record = Mapping[str, Any]


def fields_along(axis: str | int) -> tuple[str, ...]:
    """Names of the fields whose first axis has that name, and so the same length."""
    return tuple(name for name, field in FIELDS.items() if field.shape[:1] == (axis,))


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
        """Height and width of every view, where images are not encoded."""
        target = self.views[0]
        assert isinstance(target, np.ndarray), "the first view is an image"
        return target.shape[:2]

    @property
    def latent_size(self) -> tuple[int, int]:
        """Height and width of every view's latents, where images are encoded."""
        target = self.views[0]
        assert isinstance(target, EncodedImage), "the first view is an image"
        return target.mean.shape[:2]

    @property
    def text(self) -> str:
        """The prompt in words, encoded or not."""
        return self.prompt if isinstance(self.prompt, str) else self.prompt.text


class SourcedExample(NamedTuple):
    """An example, the number of its source, and how many bad records it stands in for."""

    example: Example
    source: int
    bad_records: int

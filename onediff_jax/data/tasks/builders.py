"""Example builders, one per task family: select fields of a record, then build views and prompt.

`choose` selects what an example of so many views needs, so that no other image is read.  Then
everything is cropped and resized to the slot's size.  Then `make` returns the views and the words
of the prompt.  Both functions are seeded.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from onediff_jax.data.conditions.make import Condition, ConditionConfig
from onediff_jax.data.example import Record, View
from onediff_jax.errors import BadRecord
from onediff_jax.ops.cameras import Camera, relative_cameras, scaled_cameras

Make = Callable[[Record, np.random.Generator, ConditionConfig], Condition]
Choose = Callable[[Record, int, np.random.Generator, ConditionConfig], Record]


class ExampleParts(NamedTuple):
    """The views of an example in order, and what its prompt says after the task's token."""

    views: tuple[View, ...]
    words: tuple[str, ...]


class Direction(NamedTuple):
    """A way to use a task when sampling: a name, and the views that are wanted."""

    name: str
    targets: tuple[str, ...]


class ExampleBuilder(NamedTuple):
    """How examples of a task are made."""

    counts: tuple[int, ...]  # numbers of views that an example can have
    names: Callable[[int], tuple[str, ...]]  # of an example's views; the target comes first
    choose: Choose
    make: Callable[[Record, np.random.Generator, ConditionConfig], ExampleParts]
    directions: Callable[[int], tuple[Direction, ...]]
    several: str = ""  # the field that holds several images
    of_them: Callable[[int], int] = int  # how many of them an example of so many views takes
    bare: Callable[[int], tuple[str, ...]] = lambda views: ()  # words of a prompt without captions


# --- one image, and one condition ---------------------------------------------------------------


def alone() -> ExampleBuilder:
    """An image and its caption."""

    def make(record: Record, rng: np.random.Generator, config: ConditionConfig) -> ExampleParts:
        return ExampleParts((record["image"],), (record.get("caption", ""),))

    directions = (Direction("image", ("image",)),)
    return ExampleBuilder((1,), lambda _: ("image",), everything, make, lambda _: directions)


def conditioned(view: str, condition: Make) -> ExampleBuilder:
    """An image and a condition that is made from its record, or comes with it."""

    def choose(
        record: Record, views: int, rng: np.random.Generator, config: ConditionConfig
    ) -> Record:
        if view not in record.get("pictures", {}):
            return {name: value for name, value in record.items() if name != "pictures"}
        ready = {view: record["pictures"][view]}
        return {"image": record["image"], "caption": record.get("caption", ""), "pictures": ready}

    def make(record: Record, rng: np.random.Generator, config: ConditionConfig) -> ExampleParts:
        if "pictures" in record:
            made = Condition(record["pictures"][view])
        else:
            made = condition(record, rng, config)
        return ExampleParts((record["image"], made.image), (made.words, record.get("caption", "")))

    directions = (Direction("image", ("image",)), Direction(view, (view,)))
    return ExampleBuilder((2,), lambda _: ("image", view), choose, make, lambda _: directions)


def everything(
    record: Record, views: int, rng: np.random.Generator, config: ConditionConfig
) -> Record:
    """The record, where every example needs all of it."""
    return record


# --- editing --------------------------------------------------------------------------------------


def edited() -> ExampleBuilder:
    """An image after an instruction, and before."""

    def make(record: Record, rng: np.random.Generator, config: ConditionConfig) -> ExampleParts:
        return ExampleParts((record["edited"], record["image"]), (record["instruction"],))

    directions = (Direction("image", ("image",)), Direction("source", ("source",)))
    return ExampleBuilder(
        (2,), lambda _: ("image", "source"), everything, make, lambda _: directions
    )


# --- subjects -------------------------------------------------------------------------------------


def subject(images: str, captions: str, most: int, item: str = "") -> ExampleBuilder:
    """An image of somebody or something, and up to `most` others of the same.

    `images` and `captions` are the record's fields that hold the others, `item` the one that
    holds its name, if it has one.  The prompt counts the images: [[img0]] caption of the target
    [[img1]] caption of the first other.
    """

    def names(views: int) -> tuple[str, ...]:
        return ("image", *(f"reference_{i}" for i in range(1, views)))

    def choose(
        record: Record, views: int, rng: np.random.Generator, config: ConditionConfig
    ) -> Record:
        others = record[images]
        refuse_few(images, len(others), views - 1)
        chosen = rng.permutation(len(others))[: views - 1]
        texts = record.get(captions) or [""] * len(others)
        return {
            "image": record["image"],
            "caption": record.get("caption", ""),
            "item": record[item] if item else "",
            "references": tuple(others[i] for i in chosen),
            "reference_captions": tuple(texts[i] for i in chosen),
        }

    def make(record: Record, rng: np.random.Generator, config: ConditionConfig) -> ExampleParts:
        texts = (record["caption"], *record["reference_captions"])
        words = subject_words(record["item"], texts)
        return ExampleParts((record["image"], *record["references"]), words)

    return ExampleBuilder(
        tuple(range(2, most + 2)),
        names,
        choose,
        make,
        lambda _: (Direction("image", ("image",)),),
        images,
        lambda views: views - 1,
        lambda views: subject_words("", [""] * views),
    )


def subject_words(item: str, texts: Sequence[str]) -> tuple[str, ...]:
    """A subject's name, if it has one, and its images' captions, numbered from the target on."""
    numbered = (f"[[img{i}]] {text}".rstrip() for i, text in enumerate(texts))
    return (f"<item: {item}>" if item else "", *numbered)


def refuse_few(field: str, found: int, needed: int) -> None:
    """Raises where a record has fewer images than an example takes."""
    if found < needed:
        raise BadRecord(f"{field} holds {found} images; an example takes {needed}.")


# --- several views of one scene -------------------------------------------------------------------


def is_ray(name: str) -> bool:
    """Whether a view of that name holds a camera's rays."""
    return name.startswith("ray_")


def multiview(most: int) -> ExampleBuilder:
    """2 to `most` images of a scene, each followed by its camera: image_0 ray_0 image_1 ray_1 ...

    The first camera is the world, and the point that all look at lies at a set distance from it.
    """

    def names(views: int) -> tuple[str, ...]:
        return tuple(f"{kind}_{i}" for i in range(views // 2) for kind in ("image", "ray"))

    def choose(
        record: Record, views: int, rng: np.random.Generator, config: ConditionConfig
    ) -> Record:
        frames, needed = len(record["frames"]), views // 2
        refuse_few("frames", frames, needed)
        window = min(max(config.window, needed) if config.window else frames, frames)
        first = rng.integers(frames - window + 1)
        chosen = first + rng.permutation(window)[:needed]
        return {
            "caption": record.get("caption", ""),
            "frames": tuple(record["frames"][i] for i in chosen),
            "cameras": tuple(record["cameras"][i] for i in chosen),
        }

    def make(record: Record, rng: np.random.Generator, config: ConditionConfig) -> ExampleParts:
        rig = Camera(*(np.stack(parts) for parts in zip(*record["cameras"], strict=True)))
        rig = relative_cameras(scaled_cameras(rig))
        pairs = zip(record["frames"], map(Camera, *rig), strict=True)
        return ExampleParts(tuple(view for pair in pairs for view in pair), (record["caption"],))

    def directions(views: int) -> tuple[Direction, ...]:
        images, rays = names(views)[::2], names(views)[1::2]
        half = len(images) // 2
        return (
            Direction("images", images[1:]),  # from one image and all cameras
            Direction("cameras", rays),  # from all images, no camera known
            Direction("images_from_text", images),
            Direction("both", (*images[-half:], *rays[1:-half])),  # of some, either is known
        )

    counts = tuple(range(4, 2 * most + 1, 2))
    return ExampleBuilder(
        counts, names, choose, make, directions, "frames", lambda views: views // 2
    )

"""The worlds of scenes, and streams of random numbers.

A source's `content` names one of `WORLDS`.
"""

import dataclasses
import zlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np


class FirstCamera(NamedTuple):
    """Ranges of a scene's first camera; lengths in world units, angles in degrees."""

    distance: tuple[float, float]  # from its target, where one object stands
    farther: float  # added for every other object
    aside: float  # of the target from the origin, at most, along x and y
    height: tuple[float, float]  # of the target
    elevation: tuple[float, float]
    field_of_view: tuple[float, float]


@dataclasses.dataclass(frozen=True, eq=False)
class World:
    """What scenes are made of, and what is told of them."""

    name: str
    shapes: tuple[str, ...]  # of `objects.SHAPES`
    materials: Mapping[str, float]  # and their shares
    shared_materials: Mapping[str, float]  # of the object that a group's scenes share
    figures: bool  # every other group shares a figure, not an object
    group: int  # scenes that share a figure or an object
    named_light: bool  # grounds and skies have names, else any pale color
    edits: bool  # every scene has an edit
    long_captions: bool
    synonyms: tuple[str, ...]  # alternatives that captions use now and then, of `captions.WORDS`
    camera: FirstCamera

    def kind(self, index: int) -> str:
        """What the group of a scene shares: "figures" or "objects"."""
        return "figures" if self.figures and index // self.group % 2 == 0 else "objects"


WORLDS = {
    world.name: world
    for world in (
        World(
            name="basic",
            shapes=("sphere", "box"),
            materials={"matte": 1.0},
            shared_materials={"matte": 1.0},
            figures=False,
            group=1,
            named_light=False,
            edits=False,
            long_captions=False,
            synonyms=("sphere", "box", "left", "middle", "right"),
            camera=FirstCamera((3.9, 5.2), 0.55, 0.5, (0.2, 1.1), (15, 45), (40, 50)),
        ),
        World(
            name="full",
            shapes=("sphere", "box", "cylinder", "cone", "capsule"),
            materials={"matte": 0.4, "glossy": 0.2, "striped": 0.2, "checkered": 0.2},
            shared_materials={"striped": 0.4, "checkered": 0.4, "glossy": 0.2},
            figures=True,
            group=4,
            named_light=True,
            edits=True,
            long_captions=True,
            synonyms=("left", "middle", "right"),
            camera=FirstCamera((4.3, 5.4), 0.5, 0.4, (0.6, 1.1), (6, 32), (42, 50)),
        ),
    )
}


def random_stream(*key: int | str) -> np.random.Generator:
    """Random numbers of its own for every key."""
    numbers = [zlib.crc32(part.encode()) if isinstance(part, str) else part for part in key]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(numbers)))

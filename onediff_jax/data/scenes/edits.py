"""One thing of a scene changed, and the instruction that says so.

True by construction, and visible: the first camera sees a change in a share of its pixels, and
still sees every thing well.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from onediff_jax.data.scenes import figure
from onediff_jax.data.scenes.basic import PALETTE, WORDS, placed_spots, stream
from onediff_jax.data.scenes.objects import (
    COLORS,
    SHAPES,
    Person,
    Solid,
    draw_solid,
    noun,
    with_article,
)
from onediff_jax.data.scenes.placement import PROBE, FullScene, judged, projected, view

CHANGED = 0.012  # least share of the first camera's image that shows another thing or color
DISTINCT = 0.45  # least distance of an old and a new color, in sRGB
ASIDE = 0.12  # least move to the left or right, in image widths
RESIZED = 1.4  # factor of every length
TRIES = 12  # of a kind of edit


class Edit(NamedTuple):
    """A scene after a change, and the instruction that leads from the scene before to it."""

    kind: str
    scene: FullScene
    instruction: str


Try = tuple[FullScene, str] | None


def _with(scene: FullScene, place: int, thing: Solid | Person) -> FullScene:
    things = scene.things[:place] + (thing,) + scene.things[place + 1 :]
    return dataclasses.replace(scene, things=things)


def _apart(scene: FullScene) -> bool:
    """Whether no two things overlap."""
    return all(
        math.dist(a.center[:2], b.center[:2]) > a.extent[0] + b.extent[0] + 0.03
        for i, a in enumerate(scene.things)
        for b in scene.things[:i]
    )


def _new_color(rng: np.random.Generator, scene: FullScene, old: str) -> str:
    """A color that nothing in the scene has, easily told from an old one."""
    taken = {thing.color for thing in scene.things} | {old}
    for thing in scene.things:
        if isinstance(thing, Person):
            taken |= {thing.who.trousers, thing.who.stripes, thing.who.hat_color}
        else:
            taken.add(thing.second)
    free = [
        name
        for name in PALETTE
        if name not in taken and math.dist(COLORS[name], COLORS[old]) > DISTINCT
    ]
    return free[rng.integers(len(free))]


def _recolor(scene: FullScene, place: int, rng: np.random.Generator) -> Try:
    thing = scene.things[place]
    if isinstance(thing, Solid):
        color = _new_color(rng, scene, thing.color)
        changed = dataclasses.replace(thing, color=color)
        return _with(scene, place, changed), f"make the {noun(thing)} {color}"
    clothes = ["shirt", "trousers"] + ["hat_color"] * bool(thing.who.hat_color)
    field = clothes[rng.integers(len(clothes))]
    color = _new_color(rng, scene, getattr(thing.who, field))
    who = dataclasses.replace(thing.who, **{field: color})
    if field == "shirt":
        who = dataclasses.replace(who, stripes="")
    called = {"shirt": "shirt", "trousers": "shorts" if who.shorts else "trousers"}
    changed = _with(scene, place, dataclasses.replace(thing, who=who))
    return changed, f"make the person's {called.get(field, who.hat)} {color}"


def _hat(scene: FullScene, place: int, rng: np.random.Generator) -> Try:
    thing = scene.things[place]
    if not isinstance(thing, Person):
        return None
    if thing.who.hat != "none":
        who = dataclasses.replace(thing.who, hat="none", hat_color="")
        return _with(scene, place, dataclasses.replace(thing, who=who)), "take off the hat"
    hat = figure.HATS[1 + rng.integers(len(figure.HATS) - 1)]
    color = _new_color(rng, scene, thing.who.shirt)
    who = dataclasses.replace(thing.who, hat=hat, hat_color=color)
    changed = _with(scene, place, dataclasses.replace(thing, who=who))
    return changed, f"give the person {with_article(color)} {hat}"


def _remove(scene: FullScene, place: int, rng: np.random.Generator) -> Try:
    if len(scene.things) == 1:
        return None
    left = scene.things[:place] + scene.things[place + 1 :]
    return dataclasses.replace(scene, things=left), f"remove the {noun(scene.things[place])}"


def _add(scene: FullScene, place: int, rng: np.random.Generator) -> Try:
    if len(scene.things) == 3:
        return None
    color = _new_color(rng, scene, scene.things[0].color)
    material = ("matte", "glossy", "striped", "checkered")[rng.integers(4)]
    new = draw_solid(rng, color, ["white", "black"], material)
    for _ in range(TRIES):
        spots = placed_spots(rng, [new.extent], scene.cameras[0])
        if spots is None:
            continue
        things = (*scene.things, new.at(*spots[0]))
        after = dataclasses.replace(scene, things=things)
        found = judged(after, ordered=False) if _apart(after) else None
        if found is not None:
            where = WORDS[found.things[-1].place][0]
            return found, f"add {with_article(noun(new))} {where}"
    return None


def _move(scene: FullScene, place: int, rng: np.random.Generator) -> Try:
    thing, camera = scene.things[place], scene.cameras[0]
    right, side = np.array(camera.axes()[0][:2]), int(rng.choice((-1, 1)))
    x, y = np.array(thing.center[:2]) + right * side * rng.uniform(0.7, 2.2)
    after = _with(scene, place, thing.at(float(x), float(y)))
    now, before = projected(camera, np.array([after.things[place].center, thing.center]))[0]
    if side * (now[0] - before[0]) < ASIDE or np.abs(now - 0.5).max() > 0.4:
        return None
    return after, f"move the {noun(thing)} to the {('left', 'right')[side > 0]}"


def _resize(scene: FullScene, place: int, rng: np.random.Generator) -> Try:
    thing = scene.things[place]
    if not isinstance(thing, Solid):
        return None
    larger = thing.size == "small" if rng.random() < 0.8 else thing.size == "large"
    factor = RESIZED if larger else 1 / RESIZED
    half = tuple(c * factor for c in thing.half)
    changed = dataclasses.replace(thing, half=half).at(*thing.center[:2])
    return _with(
        scene, place, changed
    ), f"make the {noun(thing)} {'larger' if larger else 'smaller'}"


def _reshape(scene: FullScene, place: int, rng: np.random.Generator) -> Try:
    thing = scene.things[place]
    if not isinstance(thing, Solid):
        return None
    shapes = [shape for shape in SHAPES if shape != thing.shape]
    shape = shapes[rng.integers(len(shapes))]
    wide = max(thing.half[:2]) if thing.shape != "sphere" else 0.8 * thing.half[0]
    wide, tall = {
        "sphere": (thing.half[2], thing.half[2]),
        "capsule": (0.5 * thing.half[2], thing.half[2]),
    }.get(shape, (wide, thing.half[2]))
    changed = dataclasses.replace(thing, shape=shape, half=(wide, wide, tall))
    return _with(scene, place, changed), f"turn the {noun(thing)} into a {shape}"


EDITS: dict[str, Callable[[FullScene, int, np.random.Generator], Try]] = {
    "recolor": _recolor,
    "remove": _remove,
    "add": _add,
    "move": _move,
    "resize": _resize,
    "reshape": _reshape,
    "hat": _hat,
}


def changed_share(before: FullScene, after: FullScene) -> float:
    """The share of the first camera's image that shows another part or color after an edit."""

    def looks(scene: FullScene) -> np.ndarray:
        seen, solids = view(scene, scene.cameras[0], PROBE), scene.solids()
        family = np.repeat(range(3), list(map(len, solids[:3])))
        made_of = (solids.color, solids.second, solids.bands, solids.checks, family)
        return np.where(seen.place < 0, -1, np.column_stack(made_of)[seen.place].T)

    return float((looks(before) != looks(after)).any(axis=0).mean())


def draw_edit(seed: int, split: str, index: int, scene: FullScene) -> Edit:
    """The edit of scene `index` of a split; a pure function of its arguments."""
    rng = stream("edit", seed, split, index)
    for kind in (list(EDITS)[i] for i in rng.permutation(len(EDITS))):
        for place in rng.permutation(len(scene.things)):
            for _ in range(TRIES):
                tried = EDITS[kind](scene, int(place), rng)
                if tried is None:
                    continue
                after, instruction = tried
                if not _apart(after) or judged(after, ordered=False) is None:
                    continue
                if changed_share(scene, after) >= CHANGED:
                    return Edit(kind, after, instruction)
    raise RuntimeError(f"Scene {index} of {split!r}, seed {seed}: nothing in it can be edited.")

"""One object of a scene changed, and the instruction that says so.

True by construction, and visible: the first camera sees a change in a share of its pixels, and
still sees every object well.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from onediff_jax.data.scenes import figure
from onediff_jax.data.scenes.captions import WORDS
from onediff_jax.data.scenes.objects import (
    NAMED_COLORS,
    PALETTE,
    Person,
    SceneObject,
    Solid,
    draw_solid,
    noun,
    with_article,
)
from onediff_jax.data.scenes.placement import PROBE, Scene, free_spots, judge, sight
from onediff_jax.data.scenes.worlds import random_stream

CHANGED = 0.012  # least share of the first camera's image that shows another object or color
DISTINCT = 0.45  # least distance of an old and a new color, in sRGB
ASIDE = 0.12  # least move to the left or right, in image widths
RESIZED = 1.4  # factor of every length
EDIT_TRIES = 12  # of a kind of edit


class Edit(NamedTuple):
    """A scene after a change, and the instruction that leads from the scene before to it."""

    kind: str
    scene: Scene
    instruction: str


Try = tuple[Scene, str] | None


def _with(scene: Scene, place: int, item: SceneObject) -> Scene:
    objects = scene.objects[:place] + (item,) + scene.objects[place + 1 :]
    return dataclasses.replace(scene, objects=objects)


def _apart(scene: Scene) -> bool:
    """Whether no two objects overlap."""
    return all(
        math.dist(a.center[:2], b.center[:2]) > a.extent[0] + b.extent[0] + 0.03
        for i, a in enumerate(scene.objects)
        for b in scene.objects[:i]
    )


def _new_color(rng: np.random.Generator, scene: Scene, old: str) -> str:
    """A color that nothing in the scene has, easily told from an old one."""
    taken = {item.color for item in scene.objects} | {old}
    for item in scene.objects:
        if isinstance(item, Person):
            taken |= {item.who.trousers, item.who.stripes, item.who.hat_color}
        else:
            taken.add(item.second)
    free = [
        name
        for name in PALETTE
        if name not in taken and math.dist(NAMED_COLORS[name], NAMED_COLORS[old]) > DISTINCT
    ]
    return free[rng.integers(len(free))]


def _recolor(scene: Scene, place: int, rng: np.random.Generator) -> Try:
    item = scene.objects[place]
    if isinstance(item, Solid):
        color = _new_color(rng, scene, item.color)
        changed = dataclasses.replace(item, color=color)
        return _with(scene, place, changed), f"make the {noun(item)} {color}"
    clothes = ["shirt", "trousers"] + ["hat_color"] * bool(item.who.hat_color)
    field = clothes[rng.integers(len(clothes))]
    color = _new_color(rng, scene, getattr(item.who, field))
    changes: dict[str, Any] = {field: color} | ({"stripes": ""} if field == "shirt" else {})
    who = dataclasses.replace(item.who, **changes)
    called = {"shirt": "shirt", "trousers": "shorts" if who.shorts else "trousers"}
    after = _with(scene, place, dataclasses.replace(item, who=who))
    return after, f"make the person's {called.get(field, who.hat)} {color}"


def _hat(scene: Scene, place: int, rng: np.random.Generator) -> Try:
    item = scene.objects[place]
    if not isinstance(item, Person):
        return None
    if item.who.hat != "none":
        who = dataclasses.replace(item.who, hat="none", hat_color="")
        return _with(scene, place, dataclasses.replace(item, who=who)), "take off the hat"
    hat = figure.HATS[1 + rng.integers(len(figure.HATS) - 1)]
    color = _new_color(rng, scene, item.who.shirt)
    who = dataclasses.replace(item.who, hat=hat, hat_color=color)
    changed = _with(scene, place, dataclasses.replace(item, who=who))
    return changed, f"give the person {with_article(color)} {hat}"


def _remove(scene: Scene, place: int, rng: np.random.Generator) -> Try:
    if len(scene.objects) == 1:
        return None
    left = scene.objects[:place] + scene.objects[place + 1 :]
    return dataclasses.replace(scene, objects=left), f"remove the {noun(scene.objects[place])}"


def _add(scene: Scene, place: int, rng: np.random.Generator) -> Try:
    if len(scene.objects) == 3:
        return None
    color = _new_color(rng, scene, scene.objects[0].color)
    material = list(scene.world.materials)[rng.integers(len(scene.world.materials))]
    new = draw_solid(rng, scene.world.shapes, color, ["white", "black"], material)
    for _ in range(EDIT_TRIES):
        spots = free_spots(rng, [new.extent], scene.cameras[0])
        if spots is None:
            continue
        objects = (*scene.objects, new.at(*spots[0]))
        after = dataclasses.replace(scene, objects=objects)
        found = judge(after, ordered=False) if _apart(after) else None
        if found is not None:
            where = WORDS[found.objects[-1].place][0]
            return found, f"add {with_article(noun(new))} {where}"
    return None


def _move(scene: Scene, place: int, rng: np.random.Generator) -> Try:
    item, camera = scene.objects[place], scene.cameras[0]
    right, side = np.array(camera.axes()[0][:2]), int(rng.choice((-1, 1)))
    x, y = np.array(item.center[:2]) + right * side * rng.uniform(0.7, 2.2)
    after = _with(scene, place, item.at(float(x), float(y)))
    now, before = camera.project(np.array([after.objects[place].center, item.center]))[0]
    if side * (now[0] - before[0]) < ASIDE or np.abs(now - 0.5).max() > 0.4:
        return None
    return after, f"move the {noun(item)} to the {('left', 'right')[side > 0]}"


def _resize(scene: Scene, place: int, rng: np.random.Generator) -> Try:
    item = scene.objects[place]
    if not isinstance(item, Solid):
        return None
    larger = item.size == "small" if rng.random() < 0.8 else item.size == "large"
    factor = RESIZED if larger else 1 / RESIZED
    x, y, z = (c * factor for c in item.half)
    changed = dataclasses.replace(item, half=(x, y, z)).at(*item.center[:2])
    return _with(
        scene, place, changed
    ), f"make the {noun(item)} {'larger' if larger else 'smaller'}"


def _reshape(scene: Scene, place: int, rng: np.random.Generator) -> Try:
    item = scene.objects[place]
    if not isinstance(item, Solid):
        return None
    shapes = [shape for shape in scene.world.shapes if shape != item.shape]
    shape = shapes[rng.integers(len(shapes))]
    wide = max(item.half[:2]) if item.shape != "sphere" else 0.8 * item.half[0]
    wide, tall = {
        "sphere": (item.half[2], item.half[2]),
        "capsule": (0.5 * item.half[2], item.half[2]),
    }.get(shape, (wide, item.half[2]))
    changed = dataclasses.replace(item, shape=shape, half=(wide, wide, tall))
    return _with(scene, place, changed), f"turn the {noun(item)} into a {shape}"


EDITS: dict[str, Callable[[Scene, int, np.random.Generator], Try]] = {
    "recolor": _recolor,
    "remove": _remove,
    "add": _add,
    "move": _move,
    "resize": _resize,
    "reshape": _reshape,
    "hat": _hat,
}


def changed_share(before: Scene, after: Scene) -> float:
    """The share of the first camera's image that shows another solid or color after an edit."""

    def looks(scene: Scene) -> np.ndarray:
        seen, solids = sight(scene, scene.cameras[0], PROBE), scene.solids()
        family = np.repeat(range(3), list(map(len, solids[:3])))
        made_of = (solids.color, solids.second, solids.bands, solids.checks, family)
        return np.where(seen.solid < 0, -1, np.column_stack(made_of)[seen.solid].T)

    return float((looks(before) != looks(after)).any(axis=0).mean())


def draw_edit(seed: int, split: str, index: int, scene: Scene) -> Edit:
    """The edit of scene `index` of a split; a pure function of its arguments."""
    rng = random_stream("edit", seed, split, index)
    for kind in (list(EDITS)[i] for i in rng.permutation(len(EDITS))):
        for place in rng.permutation(len(scene.objects)):
            for _ in range(EDIT_TRIES):
                tried = EDITS[kind](scene, int(place), rng)
                if tried is None:
                    continue
                after, instruction = tried
                if not _apart(after) or judge(after, ordered=False) is None:
                    continue
                if changed_share(scene, after) >= CHANGED:
                    return Edit(kind, after, instruction)
    raise RuntimeError(f"Scene {index} of {split!r}, seed {seed}: nothing in it can be edited.")

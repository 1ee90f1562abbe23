"""What can be said of a scene's first image: short and long captions.

Everything said follows from the scene or from what its first camera sees.
"""

import itertools
import math

import numpy as np

from onediff_jax.data.scenes.objects import Person, SceneObject, noun, with_article
from onediff_jax.data.scenes.placement import PROBE, Scene, Sight, sight
from onediff_jax.data.scenes.worlds import random_stream

WORDS: dict[str, tuple[str, str]] = {  # what captions say, usually and sometimes
    "sphere": ("sphere", "ball"),
    "box": ("box", "block"),
    "left": ("on the left", "on the left side"),
    "middle": ("in the middle", "in the center"),
    "right": ("on the right", "on the right side"),
}
RARE = 0.25  # how often the second word is said
NEARER = 0.9  # least difference of two distances from the camera that is spoken of, in world units
COVERED = (
    0.15  # share of an object's columns that another covers where one is in front of the other
)


def _joined(phrases: list[str]) -> str:
    *some, last = phrases
    return f"{', '.join(some)} and {last}" if some else last


def _called(item: SceneObject, shape: str = "") -> str:
    """An object with its size."""
    return with_article(f"{item.size} {noun(item, shape)}".strip())


def caption(scene: Scene, seed: int) -> str:
    """Every object and its place, from left to right; `seed` picks the words."""
    rng = random_stream(f"{scene.world.name} caption", seed)
    words = {name: WORDS[name][int(rng.random() < RARE)] for name in scene.world.synonyms}
    return _joined([f"{_called(o, words.get(o.name, ''))} {words[o.place]}" for o in scene.objects])


def clothes(person: Person) -> str:
    """What a figure wears."""
    who = person.who
    shirt = f"{who.shirt} and {who.stripes} striped shirt" if who.stripes else f"{who.shirt} shirt"
    worn = [with_article(shirt), f"{who.trousers} {'shorts' if who.shorts else 'trousers'}"]
    if who.hat != "none":
        worn.append(with_article(f"{who.hat_color} {who.hat}"))
    return _joined(worn)


def facing(person: Person, scene: Scene) -> str:
    """Which side of a figure the first camera sees: front, back, or its left or right side."""
    eye = scene.cameras[0].eye
    toward = math.atan2(eye[1] - person.spot[1], eye[0] - person.spot[0])
    turn = (toward - person.yaw + math.pi) % (2 * math.pi) - math.pi
    if abs(turn) < math.pi / 4:
        return "from the front"
    if abs(turn) > 3 * math.pi / 4:
        return "from behind"
    return "from its left side" if turn > 0 else "from its right side"


def _described(item: SceneObject, scene: Scene) -> str:
    if isinstance(item, Person):
        return f"a person in {clothes(item)}, {item.pose.name}, seen {facing(item, scene)}"
    words = _called(item)
    if item.second:
        words += f" with {item.second} {'stripes' if item.material == 'striped' else 'checks'}"
    return words


def _distance(item: SceneObject, scene: Scene) -> float:
    camera = scene.cameras[0]
    return float(np.dot(np.subtract(item.center, camera.eye), camera.axes()[2]))


def relation(scene: Scene, seen: Sight, left: int, right: int) -> str:
    """How an object stands to its right neighbour, such as "in front of"."""
    columns = [seen.outlines[i].reshape(PROBE, PROBE).any(axis=0) for i in (left, right)]
    both = (columns[0] & columns[1]).sum() / min(c.sum() for c in columns)
    nearer = _distance(scene.objects[right], scene) - _distance(scene.objects[left], scene)
    if both >= COVERED and abs(nearer) > NEARER:
        return "in front of" if nearer > 0 else "behind"
    if abs(nearer) > NEARER:
        return f"to the left of and {'nearer' if nearer > 0 else 'farther away'} than"
    return "to the left of"


def sun_side(scene: Scene) -> str:
    """Where light comes from: left, right, or behind the camera."""
    right, _, forward = scene.cameras[0].axes()
    sun = scene.light.sun
    across, along = np.dot(sun, right), np.dot(sun, forward)
    if abs(across) < abs(along) and along < 0:
        return "from behind the camera"
    return "from the left" if across < 0 else "from the right"


def long_caption(scene: Scene, seed: int) -> str:
    """Objects with clothes, poses and materials, how they stand to each other, ground and light."""
    rng = random_stream("long caption", seed)
    seen = sight(scene, scene.cameras[0], PROBE)
    text = [
        f"{_described(item, scene)}, {WORDS[item.place][int(rng.random() < RARE)]}"
        for item in scene.objects
    ]
    said = [f"{text[0][0].upper()}{text[0][1:]}."]
    said += [f"There is {each}." for each in text[1:]]
    for (i, a), (j, b) in itertools.pairwise(enumerate(scene.objects)):
        said.append(f"The {noun(a)} is {relation(scene, seen, i, j)} the {noun(b)}.")
    _, down, forward = scene.cameras[0].axes()
    # The sky is spoken of where the middle of the image's upper edge is above the horizon.
    sky = (
        f", under {with_article(scene.sky)}"
        if forward[2] - 0.45 / scene.cameras[0].focal * down[2] > 0
        else ""
    )
    said.append(f"The ground is {scene.ground}{sky}, and the sun shines {sun_side(scene)}.")
    return " ".join(said)

"""A jointed figure: who it is, how it holds itself, its limbs and its seventeen keypoints.

Body frame: x forward, y to the figure's left, z up; the lowest point of the body is at z = 0.
Lengths are world units, angles radians.  Keypoints are COCO's, in COCO's order; left and right are
the figure's own.
"""

import dataclasses
import math

import numpy as np
from jaxtyping import Float

from onediff_jax.data.conditions.skeleton import KEYPOINTS
from onediff_jax.data.scenes.geometry import Triple
from onediff_jax.data.scenes.primitives import Primitive, capsule, tapered

JOINTS = tuple(name.replace(" ", "_") for name in KEYPOINTS)
HATS = ("none", "cap", "bobble hat", "top hat", "pointed hat")
SKINS = ((1.0, 0.82, 0.68), (0.91, 0.69, 0.52), (0.70, 0.47, 0.32), (0.43, 0.27, 0.18))
HAIRS = ((0.10, 0.08, 0.07), (0.35, 0.21, 0.10), (0.87, 0.70, 0.33), (0.55, 0.17, 0.08))
EYES = (0.05, 0.05, 0.08)
SHIRT_BANDS = 6.0  # of a striped shirt


@dataclasses.dataclass(frozen=True)
class Identity:
    """What stays with a figure from scene to scene; colors by their names."""

    height: float
    build: float  # thickness of its limbs, 1 is usual
    legs: float  # their share of the height
    skin: Triple
    hair: Triple
    shirt: str
    stripes: str  # second color of the shirt; empty: plain
    trousers: str
    shorts: bool
    shoes: str
    hat: str
    hat_color: str  # empty without a hat


@dataclasses.dataclass(frozen=True)
class Pose:
    """Directions of limbs, each as (forward, outward) angles from hanging straight down.

    Of every pair the left one comes first.
    """

    name: str
    upper_arms: tuple[tuple[float, float], tuple[float, float]]
    forearms: tuple[tuple[float, float], tuple[float, float]]
    thighs: tuple[tuple[float, float], tuple[float, float]]
    shins: tuple[tuple[float, float], tuple[float, float]]


POSES = (
    "standing",
    "walking",
    "waving with the left hand",
    "waving with the right hand",
    "with both arms raised",
    "with both arms stretched out",
    "with both hands on the hips",
    "sitting on the ground",
)


def draw_identity(rng: np.random.Generator, colors: list[str]) -> Identity:
    """A figure; its clothes' colors are all different."""
    shirt, trousers, stripes, hat_color, shoes = (
        colors[i] for i in rng.permutation(len(colors))[:5]
    )
    hat = HATS[rng.integers(len(HATS))]
    return Identity(
        height=rng.uniform(2.0, 2.5),
        build=rng.uniform(0.85, 1.3),
        legs=rng.uniform(0.44, 0.5),
        skin=SKINS[rng.integers(len(SKINS))],
        hair=HAIRS[rng.integers(len(HAIRS))],
        shirt=shirt,
        stripes=stripes if rng.random() < 0.35 else "",
        trousers=trousers,
        shorts=bool(rng.random() < 0.4),
        shoes=shoes,
        hat=hat,
        hat_color="" if hat == "none" else hat_color,
    )


def draw_pose(rng: np.random.Generator, name: str) -> Pose:
    """A pose of that name, never twice the same."""

    def near(forward: float, outward: float, spread: float = 0.1) -> tuple[float, float]:
        first, second = (float(a + rng.uniform(-spread, spread)) for a in (forward, outward))
        return first, second

    def both(limbs: list[tuple[float, float]]) -> tuple[tuple[float, float], tuple[float, float]]:
        left, right = limbs
        return left, right

    upper, lower = [near(0.0, 0.2), near(0.0, 0.2)], [near(0.25, 0.12), near(0.25, 0.12)]
    thighs, shins = [near(0.05, 0.1, 0.04), near(0.05, 0.1, 0.04)], [(0.0, 0.06), (0.0, 0.06)]
    if name == "walking":
        ahead = int(rng.integers(2))
        thighs[ahead], shins[ahead] = near(0.55, 0.04, 0.06), near(0.3, 0.02, 0.06)
        thighs[1 - ahead], shins[1 - ahead] = near(-0.35, 0.04, 0.06), near(-0.85, 0.02, 0.1)
        upper[ahead], lower[ahead] = near(-0.55, 0.15), near(-0.1, 0.05)
        upper[1 - ahead], lower[1 - ahead] = near(0.55, 0.15), near(1.2, 0.0)
    elif name.startswith("waving"):
        hand = int(name == "waving with the right hand")
        upper[hand], lower[hand] = near(0.1, 1.75, 0.15), near(0.1, 2.9, 0.3)
    elif name == "with both arms raised":
        upper, lower = [near(0.0, 2.45), near(0.0, 2.45)], [near(0.0, 2.85), near(0.0, 2.85)]
    elif name == "with both arms stretched out":
        upper, lower = [near(0.0, 1.5), near(0.0, 1.5)], [near(0.05, 1.55), near(0.05, 1.55)]
    elif name == "with both hands on the hips":
        upper, lower = (
            [near(-0.15, 0.85), near(-0.15, 0.85)],
            [near(0.35, -0.75), near(0.35, -0.75)],
        )
    elif name == "sitting on the ground":
        thighs, shins = [near(1.5, 0.2, 0.05), near(1.5, 0.2, 0.05)], [(1.42, 0.2), (1.42, 0.2)]
        upper, lower = [near(0.3, 0.25), near(0.3, 0.25)], [near(0.9, 0.0), near(0.9, 0.0)]
    return Pose(name, both(upper), both(lower), both(thighs), both(shins))


def _toward(angles: tuple[float, float], side: int) -> Float[np.ndarray, "3"]:
    """The unit direction of a limb of the left (side 1) or right (-1) half of the body."""
    forward, outward = angles
    level = math.cos(outward)
    return np.array(
        (math.sin(forward) * level, side * math.sin(outward), -math.cos(forward) * level)
    )


def _radii(who: Identity) -> dict[str, float]:
    """Of limbs, head and torso."""
    thick = who.height * who.build
    return {
        "head": 0.085 * who.height,
        "neck": 0.035 * thick,
        "torso": 0.072 * thick,
        "arm": 0.036 * thick,
        "forearm": 0.032 * thick,
        "thigh": 0.055 * thick,
        "shin": 0.043 * thick,
        "foot": 0.036 * thick,
    }


def _body(who: Identity, pose: Pose) -> tuple[dict[str, np.ndarray], float]:
    """Joints by name in the body frame, and how far its hips are above the ground."""
    h, radius = who.height, _radii(who)
    hip, knee = who.legs * h, 0.5 * (who.legs * h - 0.045 * h)
    shoulder = 0.79 * h - hip  # above the hips
    head = 0.97 * h - radius["head"] - hip
    joints = {"head": np.array((0, 0, head)), "neck": np.array((0, 0, shoulder))}
    r = radius["head"]
    for side, name, i in ((1, "left_", 0), (-1, "right_", 1)):
        joints[f"{name}eye"] = joints["head"] + r * np.array((0.88, side * 0.4, 0.12))
        joints[f"{name}ear"] = joints["head"] + r * np.array((0, side * 0.94, 0))
        joints[f"{name}shoulder"] = np.array((0, side * (0.095 * h * who.build), shoulder))
        joints[f"{name}hip"] = np.array((0, side * 0.055 * h * who.build, 0.0))
        for chain, length, directions in (
            (("shoulder", "elbow"), 0.165 * h, pose.upper_arms),
            (("elbow", "wrist"), 0.16 * h, pose.forearms),
            (("hip", "knee"), knee, pose.thighs),
            (("knee", "ankle"), knee, pose.shins),
        ):
            start, end = (name + joint for joint in chain)
            joints[end] = joints[start] + length * _toward(directions[i], side)
        # Feet are square to the shins, and flatter where the shin is far from upright.
        tilt = 0.6 * pose.shins[i][0]
        toe = np.array((math.cos(tilt), side * 0.15, math.sin(tilt)))
        joints[f"{name}toe"] = joints[f"{name}ankle"] + 0.085 * h * toe
    joints["nose"] = joints["head"] + r * np.array((0.97, 0, -0.12))
    lowest = min(
        joints[f"{side}_{joint}"][2] - reach
        for side in ("left", "right")
        for joint, reach in (
            ("hip", radius["thigh"]),
            ("knee", radius["shin"]),
            ("ankle", radius["foot"]),
            ("toe", radius["foot"]),
        )
    )
    return joints, -lowest


def keypoints(who: Identity, pose: Pose) -> Float[np.ndarray, "17 3"]:
    """Where the keypoints are in the body frame."""
    joints, lift = _body(who, pose)
    return np.array([joints[name] for name in JOINTS]) + (0, 0, lift)


def reaches(who: Identity) -> Float[np.ndarray, "17"]:
    """How deep a keypoint lies in its own part of the body, seen from any side."""
    radius = _radii(who)
    head = 0.45 * radius["head"]
    limbs = ("torso", "torso", "arm", "arm", "forearm", "forearm", "torso", "torso",
             "thigh", "thigh", "shin", "shin")  # fmt: skip
    return np.array([head] * 5 + [1.6 * radius[limb] for limb in limbs])


def primitives(who: Identity, pose: Pose, colors: dict[str, Triple]) -> list[Primitive]:
    """The limbs and clothes in the body frame, feet first; `colors` maps names to sRGB."""
    joints, lift = _body(who, pose)
    at = {name: joint + (0, 0, lift) for name, joint in joints.items()}
    radius = _radii(who)
    shirt, trousers, shoes = (colors[c] for c in (who.shirt, who.trousers, who.shoes))
    found = [
        capsule(at[f"{side}ankle"], at[f"{side}toe"], radius["foot"], shoes)
        for side in ("left_", "right_")
    ]
    bands = (colors[who.stripes], SHIRT_BANDS) if who.stripes else (shirt, 0.0)
    for side in ("left_", "right_"):
        hip, neck = at[f"{side}hip"], at[f"{side}shoulder"]
        inner = neck * (1, 0.55, 1) - (0, 0, 0.35 * radius["torso"])
        found += [
            capsule(hip + (0, 0, 0.05 * who.height), inner, radius["torso"], shirt, *bands),
            capsule(neck, at[f"{side}elbow"], radius["arm"], shirt),
            capsule(at[f"{side}elbow"], at[f"{side}wrist"], radius["forearm"], who.skin),
            capsule(hip, at[f"{side}knee"], radius["thigh"], trousers),
            capsule(
                at[f"{side}knee"],
                at[f"{side}ankle"],
                radius["shin"],
                who.skin if who.shorts else trousers,
            ),
        ]
    head, r = at["head"], radius["head"]
    found += [
        capsule(at["neck"], head, radius["neck"], who.skin),
        capsule(head, head, r, who.skin),
        capsule(
            head + r * np.array((-0.2, 0, 0.13)), head + r * np.array((-0.2, 0, 0.13)), r, who.hair
        ),
    ]
    found += [capsule(at[eye], at[eye], 0.2 * r, EYES) for eye in ("left_eye", "right_eye")]
    return found + _hat(who, head, r, colors)


def _hat(who: Identity, head: np.ndarray, r: float, colors: dict[str, Triple]) -> list[Primitive]:
    if who.hat == "none":
        return []
    color = colors[who.hat_color]

    def ball(x: float, z: float, size: float) -> Primitive:
        middle = head + r * np.array((x, 0, z))
        return capsule(middle, middle, size * r, color)

    def upright(z: float, width: float, tall: float, top: float) -> Primitive:
        return tapered(
            head + r * np.array((-0.05, 0, z)), r * np.array((width, width, tall)), top, color
        )

    match who.hat:
        case "cap":
            brim = head + r * np.array((0.95, 0, 0.5))
            aside = np.array((0, 0.42 * r, 0))
            return [ball(-0.08, 0.32, 0.98), capsule(brim - aside, brim + aside, 0.22 * r, color)]
        case "bobble hat":
            return [ball(-0.08, 0.34, 1.0), ball(-0.08, 1.45, 0.38)]
        case "top hat":
            return [upright(0.62, 1.4, 0.08, 1.0), upright(1.25, 0.92, 0.6, 1.0)]
        case _:
            return [upright(1.5, 1.05, 1.0, 0.0)]

"""Pose images: COCO's seventeen keypoints as a skeleton in the released look.

Black ground, thin limbs and points; head and torso orange, the person's left green, right blue.
"""

import numpy as np
from jaxtyping import Float, UInt8

from onediff_jax.data.example import RGB

KEYPOINTS = (
    "nose", "left eye", "right eye", "left ear", "right ear",
    "left shoulder", "right shoulder", "left elbow", "right elbow", "left wrist", "right wrist",
    "left hip", "right hip", "left knee", "right knee", "left ankle", "right ankle",
)  # fmt: skip
# The colors of MMPose with red and blue swapped, which is how the released examples look.
MIDDLE, LEFT, RIGHT = (255, 153, 51), (0, 255, 0), (0, 128, 255)
LIMBS = {
    LEFT: ((5, 7), (7, 9), (11, 13), (13, 15)),
    RIGHT: ((6, 8), (8, 10), (12, 14), (14, 16)),
    MIDDLE: (
        *((0, 1), (0, 2), (1, 2), (1, 3), (2, 4), (3, 5), (4, 6)),
        *((5, 6), (5, 11), (6, 12), (11, 12)),
    ),
}


def pose_image(keypoints: Float[np.ndarray, "people 17 3"], height: int, width: int) -> RGB:
    """Everybody's skeleton on black; nobody is black.

    A keypoint is x, y in pixels (the first pixel's centre is (0.5, 0.5)) and COCO's visibility: 0
    is not known and not drawn; 1 (hidden) and 2 (visible) are.  A limb is drawn where both its ends
    are.  Limbs are one pixel wide for every 256 of the shorter side and points three, at least one
    and three.
    """
    points, known = keypoints[..., :2], keypoints[..., 2] > 0
    image = np.zeros((height, width, 3), np.uint8)
    thickness = max(1.0, min(height, width) / 256)
    for person, seen in zip(points, known, strict=True):
        for color, limbs in LIMBS.items():
            for a, b in limbs:
                if seen[a] and seen[b]:
                    draw_line(image, person[a], person[b], thickness, color)
        for i in np.flatnonzero(seen):
            draw_line(image, person[i], person[i], 3 * thickness, point_color(int(i)))
    return image


def draw_line(
    image: UInt8[np.ndarray, "h w 3"],
    start: Float[np.ndarray, "2"],
    end: Float[np.ndarray, "2"],
    thickness: float,
    color: tuple[int, int, int],
) -> None:
    """Draws into the image a smooth line with round ends; a disc where its ends are one point.

    A pixel takes the share of the color by which its centre lies inside, to half a pixel.
    (OpenCV's smooth lines are wider than asked for and lean to one side.)
    """
    reach = thickness / 2 + 1
    size = np.array([image.shape[1], image.shape[0]])
    low = np.clip(np.floor(np.minimum(start, end) - reach), 0, size).astype(int)
    high = np.clip(np.ceil(np.maximum(start, end) + reach), 0, size).astype(int)
    part = image[low[1] : high[1], low[0] : high[0]]
    x, y = np.meshgrid(*(np.arange(a, b) + 0.5 for a, b in zip(low, high, strict=True)))
    offset, along = np.stack([x, y], -1) - start, end - start
    share = np.clip(offset @ along / max(along @ along, 1e-12), 0, 1)
    distance = np.linalg.norm(offset - share[..., None] * along, axis=-1)
    inside = np.clip(thickness / 2 + 0.5 - distance, 0, 1)[..., None]
    part[:] = np.round(part + inside * (np.array(color) - part))


def point_color(keypoint: int) -> tuple[int, int, int]:
    """A point's color: the head's, or its side's."""
    if keypoint < KEYPOINTS.index("left shoulder"):
        return MIDDLE
    return LEFT if KEYPOINTS[keypoint].startswith("left") else RIGHT

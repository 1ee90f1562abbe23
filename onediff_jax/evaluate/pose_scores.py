"""Scores of predicted cameras against the true ones of a rig, in any world and unit.  Numpy alone.

As in RayDiffusion (Zhang et al. 2024): centres after the best similarity, rotations by pairs.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from onediff_jax.ops.cameras import Camera, nearest_rotation

SAME_POINT = 1e-6  # centres this close, against one unit and their coordinates, are one point


class Similarity(NamedTuple):
    """The map x -> scale R x + translation."""

    scale: float
    rotation: Float[np.ndarray, "3 3"]
    translation: Float[np.ndarray, "3"]

    def __call__(self, points: Float[np.ndarray, "v 3"]) -> Float[np.ndarray, "v 3"]:
        """The points' images."""
        return self.scale * points @ self.rotation.T + self.translation


class PoseScore(NamedTuple):
    """Shares in [0, 1] of a rig's cameras and of its pairs of cameras; nan where there is none."""

    centers_within_30_percent: float  # of the scene's scale; what the paper reports
    centers_within_10_percent: float
    rotations_within_15_degrees: float
    rotations_within_30_degrees: float


def _coincide(points: Float[np.ndarray, "v 3"]) -> bool:
    return bool(np.ptp(points, axis=0).max() <= SAME_POINT * max(1, np.abs(points).max()))


def umeyama(source: Float[np.ndarray, "v 3"], target: Float[np.ndarray, "v 3"]) -> Similarity:
    """The similarity that takes points nearest to others, by least squares (Umeyama 1991).

    No mirror.  Points on a line leave the turn about it free, and any is as good.  Points that
    coincide go to the middle of the others: scale 0.
    """
    source_mean, target_mean = source.mean(0), target.mean(0)
    around, wanted = source - source_mean, target - target_mean
    covariance = wanted.T @ around
    rotation = nearest_rotation(covariance)
    scale = 0.0 if _coincide(source) else float((rotation * covariance).sum() / (around**2).sum())
    return Similarity(scale, rotation, target_mean - scale * rotation @ source_mean)


def center_errors(
    predicted: Float[np.ndarray, "v 3"], true: Float[np.ndarray, "v 3"]
) -> Float[np.ndarray, " v"]:
    """Distances of aligned centres from the true ones, over the scene's scale.

    The scale is the distance of the furthest true centre from their centroid; where all true
    centres coincide there is none, and the errors are nan.  Two centres always fit exactly, unless
    the predicted ones coincide: then every error is 1.
    """
    if _coincide(true):
        return np.full(len(true), np.nan)
    scale = np.linalg.norm(true - true.mean(0), axis=-1).max()
    return np.linalg.norm(umeyama(predicted, true)(predicted) - true, axis=-1) / scale


def relative_rotation_errors(
    predicted: Float[np.ndarray, "v 3 3"], true: Float[np.ndarray, "v 3 3"]
) -> Float[np.ndarray, " pairs"]:
    """Angles in degrees between predicted and true relative rotations, of all pairs i < j.

    The rotations are from camera to world.
    """
    i, j = np.triu_indices(len(true), k=1)
    ours, theirs = (r[j].swapaxes(-1, -2) @ r[i] for r in (predicted, true))
    # The sine of half the angle: the arc cosine of the trace loses small angles.
    chord = np.linalg.norm(ours - theirs, axis=(-2, -1)) / np.sqrt(8)
    return np.degrees(2 * np.arcsin(np.minimum(chord, 1)))


def _share(errors: Float[np.ndarray, " n"], threshold: float) -> float:
    """The share of errors below a threshold; nan where there are none, or none is defined."""
    if not len(errors) or np.isnan(errors).any():
        return float("nan")
    return float((errors < threshold).mean())


def pose_score(predicted: Camera, true: Camera) -> PoseScore:
    """Scores of a rig (v) of predicted cameras, in any world, unit and scale of their own.

    Of one camera nothing is defined; of two the centres say nothing, see `center_errors`.
    """
    centers = center_errors(predicted.center, true.center)
    angles = relative_rotation_errors(predicted.rotation, true.rotation)
    return PoseScore(
        *(_share(centers, threshold) for threshold in (0.3, 0.1)),
        *(_share(angles, threshold) for threshold in (15.0, 30.0)),
    )

"""Rigs of random cameras for tests, and how far apart two rigs are."""

import numpy as np
from scipy.spatial.transform import Rotation

from onediff_jax.ops.cameras import Camera


def random_pose(rng, *shape):
    """A rigid pose anywhere; the rotation by SciPy, uniform."""
    pose = np.zeros((*shape, 4, 4))
    pose[..., 3, 3] = 1
    count = int(np.prod(shape))
    pose[..., :3, :3] = Rotation.random(count, rng=rng).as_matrix().reshape(*shape, 3, 3)
    pose[..., :3, 3] = rng.normal(size=(*shape, 3))
    return pose


def random_cameras(rng, *shape, size=(48, 64)):
    """Cameras anywhere, with two focal lengths and a principal point off the middle."""
    K = np.zeros((*shape, 3, 3))
    K[..., 2, 2] = 1
    for axis, pixels in ((0, size[1]), (1, size[0])):
        K[..., axis, axis] = rng.uniform(0.8, 2, shape) * pixels
        K[..., axis, 2] = rng.uniform(0.4, 0.6, shape) * pixels
    return Camera(K, random_pose(rng, *shape))


def moved(cameras, motion):
    """The same cameras in a world moved rigidly."""
    return cameras._replace(camera_to_world=motion @ cameras.camera_to_world)


def angles(a, b):
    """Angles in degrees between the rotations of two rigs."""
    turn = np.swapaxes(a.rotation, -1, -2) @ b.rotation
    return np.degrees(Rotation.from_matrix(turn.reshape(-1, 3, 3)).magnitude())

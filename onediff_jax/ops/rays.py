"""Cameras as images of Plücker rays, as the released weights read them; for NumPy and jax.numpy.

A ray is (direction, moment): a unit vector and origin x direction, which is the same for every
point of the ray.  Inside the project rays are in OpenCV axes; the released layout has the first
camera as its world, with x left, y up and z forward.
"""

import math
from typing import Any

from jaxtyping import Float

from onediff_jax.errors import InputError
from onediff_jax.ops.cameras import Camera, rotated

RAY_SCALE = 1.658  # one over the standard deviation of the released rigs' rays


def directions_in_camera(
    intrinsics: Float[Any, "*batch 3 3"], size: tuple[int, int], factor: int
) -> Float[Any, "*batch h w 3"]:
    """Unit directions in the camera's frame through the centres of factor x factor pixels.

    `size` is the image's (height, width); raises InputError where `factor` does not divide it.
    """
    height, width = size
    if height % factor or width % factor:
        raise InputError(
            f"An image of {height} x {width} has no rays for {factor} x {factor} pixels each; "
            f"use {max(height // factor, 1) * factor} x {max(width // factor, 1) * factor}."
        )
    xp, K = intrinsics.__array_namespace__(), intrinsics[..., None, None, :, :]
    across = ((xp.arange(width // factor) + 0.5) * factor).astype(K.dtype)
    down = ((xp.arange(height // factor) + 0.5) * factor).astype(K.dtype)
    y = (down[:, None] - K[..., 1, 2]) / K[..., 1, 1]
    x = (across - K[..., 0, 2] - K[..., 0, 1] * y) / K[..., 0, 0]
    point = xp.stack(xp.broadcast_arrays(x, y, xp.ones_like(x)), axis=-1)
    return point / xp.linalg.norm(point, axis=-1, keepdims=True)


def rays_from_cameras(
    cameras: Camera, size: tuple[int, int], factor: int = 8
) -> Float[Any, "*batch h w 6"]:
    """Rays in the cameras' world through the centres of factor x factor pixels.

    They span the whole image of a size (height, width), whatever its shape.
    """
    xp = cameras.camera_to_world.__array_namespace__()
    local = directions_in_camera(cameras.intrinsics, size, factor)
    direction = rotated(cameras.rotation[..., None, None, :, :], local)
    origin = xp.broadcast_to(cameras.center[..., None, None, :], direction.shape)
    return xp.concatenate([direction, xp.linalg.cross(origin, direction)], axis=-1)


def released_rays(rays: Float[Any, "*batch h w 6"]) -> Float[Any, "*batch h w 6"]:
    """Rays of the released layout, of rays in the first camera's frame with OpenCV axes.

    x and y change their signs, in direction and moment alike: half a turn about z.
    """
    xp = rays.__array_namespace__()
    return rays * xp.asarray([-1.0, -1.0, 1.0, -1.0, -1.0, 1.0], dtype=rays.dtype)


def opencv_rays(rays: Float[Any, "*batch h w 6"]) -> Float[Any, "*batch h w 6"]:
    """The inverse of `released_rays`: another half turn."""
    return released_rays(rays)


def ray_latents(
    cameras: Camera, size: tuple[int, int], factor: int = 8, channels: int = 16
) -> Float[Any, "*batch h w c"]:
    """What the network sees of cameras: their released rays, repeated to a codec's channels.

    The world is that of `relative_cameras`: the first camera of their rig.  Channel i is ray
    coordinate i mod 6 times RAY_SCALE: [d, m, d, m, d, m_x] for 16.  `size` is the image's
    (height, width), `factor` and `channels` are the codec's; raises InputError for fewer than 6
    channels.
    """
    if channels < 6:
        raise InputError(f"A ray has 6 coordinates; {channels} channels cannot hold it.")
    rays = released_rays(rays_from_cameras(cameras, size, factor))
    xp = rays.__array_namespace__()
    repeated = xp.concatenate([rays] * math.ceil(channels / 6), axis=-1)
    return RAY_SCALE * repeated[..., :channels]


def rays_from_latents(latents: Float[Any, "*batch h w c"]) -> Float[Any, "*batch h w 6"]:
    """The inverse of `ray_latents`: rays in the first camera's frame with OpenCV axes.

    Of noisy latents the copies of a coordinate are averaged; directions are not made unit vectors,
    so that their lengths still fit their moments.
    """
    xp = latents.__array_namespace__()
    mean = xp.stack([latents[..., i::6].mean(-1) for i in range(6)], axis=-1)
    return opencv_rays(mean / RAY_SCALE)

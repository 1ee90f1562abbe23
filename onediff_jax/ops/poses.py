"""Cameras of images of rays, with intrinsics known or not: the way back of `ops/rays.py`.

Rays are (direction, moment) with OpenCV axes in any world; predicted ones are noisy and their
directions are not unit vectors.  A ray (s d, s m) is the ray (d, m) for every s > 0, so a moment is
divided by the length of its direction before it is used.

Rotation first, then the centre on the rotated directions: they carry no noise, and least squares on
noisy directions would pull the centre along the optical axis.
"""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from onediff_jax.errors import InputError
from onediff_jax.ops.cameras import Camera, nearest_rotation, pose_matrix, rotated, transposed
from onediff_jax.ops.rays import directions_in_camera

THRESHOLD = 0.2  # distance of unit directions at which a ray still fits: 11 degrees
TRIALS = 500  # of RANSAC: enough to meet four good rays where only a third is good (99.8 %)
TRIM = 3.0  # times the median misfit: 3.5 standard deviations of noise in two directions
EXACT = 1e-9  # a misfit that is rounding
ROUNDS = 10  # of Gauss-Newton
SINGULAR = 1e-6  # determinant of a homography of norm 1 that is flat: f is 500 widths


def unit_rays(rays: Float[Any, "*batch 6"]) -> tuple[Any, Any]:
    """Unit directions, and the moments that belong to them."""
    xp = rays.__array_namespace__()
    length = xp.linalg.norm(rays[..., :3], axis=-1, keepdims=True)
    scaled = rays / xp.maximum(length, xp.finfo(rays.dtype).tiny)
    return scaled[..., :3], scaled[..., 3:]


def center_from_rays(
    direction: Float[Any, "*batch n 3"], moment: Float[Any, "*batch n 3"]
) -> Float[Any, "*batch 3"]:
    """The point c that minimises the sum of |c x d - m|², for unit directions.

    The same as the point nearest to all rays, sum(I - d dᵀ) c = sum(d x m).
    """
    xp = direction.__array_namespace__()
    identity = xp.eye(3, dtype=direction.dtype)
    across = identity - direction[..., :, None] * direction[..., None, :]
    target = xp.linalg.cross(direction, moment).mean(-2)
    return xp.linalg.solve(across.mean(-3), target[..., None])[..., 0]


def _pose(local: Any, rays: Any) -> Any:
    """The pose that turns and moves a camera's own directions (n 3) onto rays (n 6)."""
    direction, moment = unit_rays(rays)
    rotation = nearest_rotation((direction[..., :, None] * local[..., None, :]).mean(-3))
    turned = rotated(rotation[..., None, :, :], local)
    return pose_matrix(rotation, center_from_rays(turned, moment))


def cameras_from_rays(
    rays: Float[Any, "*batch h w 6"], intrinsics: Float[Any, "*batch 3 3"], factor: int = 8
) -> Camera:
    """The cameras that have these intrinsics and see these rays, by least squares.

    A ray stands for factor x factor pixels.  Rotation as Kabsch, then the centre.  Inverse of
    `rays_from_cameras`.
    """
    height, width = rays.shape[-3:-1]
    local = directions_in_camera(intrinsics, (height * factor, width * factor), factor)
    local = local.reshape(*local.shape[:-3], height * width, 3)
    return Camera(intrinsics, _pose(local, rays.reshape(*rays.shape[:-3], height * width, 6)))


def _misfits(H: Any, points: Any, direction: Any) -> Any:
    """Distances of unit directions (n 3) from where homographies send their points (n 3)."""
    image = points @ transposed(H)
    length = np.maximum(np.linalg.norm(image, axis=-1, keepdims=True), np.finfo(float).tiny)
    return np.linalg.norm(image / length - direction, axis=-1)


def _fitting(misfits: Any) -> Any:
    """Which of n pairs fit: within THRESHOLD, and within TRIM of the median of those that are."""
    median = np.median(misfits[misfits < THRESHOLD]) if (misfits < THRESHOLD).any() else 0
    return misfits < min(THRESHOLD, TRIM * median + EXACT)


def homography_from_directions(
    points: Float[np.ndarray, "n 3"], direction: Float[np.ndarray, "n 3"], seed: int = 0
) -> tuple[Float[np.ndarray, "3 3"], Bool[np.ndarray, "n"]]:
    """The H with H p along d for homogeneous points and unit directions, and the pairs that fit it.

    RANSAC over four pairs each (Fischler and Bolles 1981; the direct linear transform d x H p = 0),
    judged by directions on the sphere, where no ray lies at infinity.  Then Gauss-Newton on the
    sum of |H p / |H p| - d|² over those that fit: unlike the linear transform it has no bias from
    noisy directions.  The norm of H is 1; its determinant is negative where rays are mirrored.
    """
    rng = np.random.default_rng(seed)
    chosen = rng.integers(len(points), size=(TRIALS, 4))
    p, d = points[chosen], direction[chosen]
    x, y, z = np.moveaxis(d, -1, 0)
    zero = np.zeros_like(x)
    cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(TRIALS, 4, 3, 3)
    equations = np.einsum("tpij,tpk->tpijk", cross, p).reshape(TRIALS, 12, 9)
    H = np.linalg.svd(equations, full_matrices=False)[2][:, -1].reshape(TRIALS, 3, 3)
    # A rotation and K have positive determinants; with the other sign a good sample fits nothing.
    H = H * np.where(np.linalg.det(H) < 0, -1, 1)[:, None, None]
    H = H[(_misfits(H, points, direction) < THRESHOLD).sum(-1).argmax()]
    for _ in range(ROUNDS):
        fits = _fitting(_misfits(H, points, direction))
        p, image = points[fits], points[fits] @ H.T
        length = np.linalg.norm(image, axis=-1, keepdims=True)
        image = image / length
        across = (np.eye(3) - image[:, :, None] * image[:, None, :]) / length[..., None]
        slope = (across[..., None] * p[:, None, None, :]).reshape(-1, 9)
        # The length of H is free, and no direction feels it: the last term holds it.
        normal = slope.T @ slope + len(p) * np.outer(H, H)
        change = np.linalg.lstsq(normal, slope.T @ (direction[fits] - image).reshape(-1))[0]
        H = H + change.reshape(3, 3)
        H = H / np.linalg.norm(H)
    return H, fits


def uncalibrated_camera_from_rays(
    rays: Float[np.ndarray, "h w 6"], factor: int = 8, seed: int = 0
) -> Camera:
    """The pinhole camera, without skew, that sees these rays; its intrinsics are found too.

    Directions are H = R K⁻¹ times pixels, up to length, so the QR decomposition of H gives both:
    its triangle is K⁻¹, and focal lengths are one over its first entries.  (Of row vectors, or of
    the way from directions to pixels, it would be QL or RQ, and the focal lengths the entries.)
    Raises InputError where they fit no camera: one direction everywhere, or a mirrored image.
    """
    height, width = rays.shape[:2]
    flat = rays.reshape(-1, 6).astype(np.float64)
    direction, _ = unit_rays(flat)
    rows, columns = np.mgrid[:height, :width].reshape(2, -1) + 0.5
    # The image's middle as origin and half its longer side as unit condition the equations.
    half, middle = max(height, width) / 2, (width / 2, height / 2)
    points = np.stack(
        [(columns - middle[0]) / half, (rows - middle[1]) / half, np.ones(len(rows))], axis=-1
    )
    H, fits = homography_from_directions(points, direction, seed)
    if fits.sum() < 4 or np.linalg.det(H) < SINGULAR:
        raise InputError(
            f"Of {len(flat)} rays {fits.sum()} fit the best homography, flat or a mirror's, "
            "not a camera's; give intrinsics."
        )
    triangle = np.linalg.qr(H)[1]
    triangle *= np.sign(np.diag(triangle))[:, None]
    K = np.linalg.inv(triangle)
    K /= K[2, 2]
    K[0, 1] = 0
    unit = half * factor
    pixels = np.array([[unit, 0, middle[0] * factor], [0, unit, middle[1] * factor], [0, 0, 1]])
    K = pixels @ K
    local = directions_in_camera(K, (height * factor, width * factor), factor).reshape(-1, 3)
    return Camera(K, _pose(local[fits], flat[fits]))

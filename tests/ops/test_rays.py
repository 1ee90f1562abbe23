"""Rays of cameras, in the project's frame and as the released weights read them."""

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose
from rigs import moved, random_cameras, random_pose

from onediff_jax.errors import InputError
from onediff_jax.ops import cameras as c
from onediff_jax.ops import rays as r

SIZE = (48, 64)


@pytest.fixture
def rng():
    return np.random.default_rng(1)


def rig_latents(cameras, *arguments, **options):
    """What the network sees of a rig: its first camera is the world."""
    return r.ray_latents(c.relative_cameras(cameras), *arguments, **options)


def test_rays_pass_through_their_camera_and_their_pixels_centre(rng):
    """A point far along a ray projects to the middle of the ray's block of pixels."""
    camera = random_cameras(rng)
    rays = r.rays_from_cameras(camera, SIZE)
    assert rays.shape == (6, 8, 6)
    direction, moment = rays[..., :3], rays[..., 3:]
    assert_allclose(np.linalg.norm(direction, axis=-1), 1)
    # The moment is orthogonal to both, as long as the ray is far from the world's origin.
    assert_allclose(np.cross(camera.center, direction), moment, atol=1e-12)
    far = camera.center + 100 * direction
    local = (far - camera.center) @ np.linalg.inv(camera.rotation).T
    pixels = local @ camera.intrinsics.T
    assert (local[..., 2] > 0).all()
    rows, columns = np.mgrid[:6, :8]
    assert_allclose(pixels[..., 0] / pixels[..., 2], columns * 8 + 4, atol=1e-9)
    assert_allclose(pixels[..., 1] / pixels[..., 2], rows * 8 + 4, atol=1e-9)


def test_skew_is_part_of_the_intrinsics(rng):
    K = np.array([[60.0, 7, 30], [0, 50, 20], [0, 0, 1]])
    local = r.directions_in_camera(K, SIZE, 8)
    pixels = local / local[..., 2:] @ K.T
    rows, columns = np.mgrid[:6, :8]
    assert_allclose(pixels[..., :2], np.stack([columns * 8 + 4, rows * 8 + 4], -1), atol=1e-12)


def test_a_ray_does_not_depend_on_where_on_it_the_origin_is_taken(rng):
    camera = random_cameras(rng)
    rays = r.rays_from_cameras(camera, SIZE)
    for row, column in ((0, 0), (2, 5), (5, 7)):
        origin = camera.center + rng.normal() * rays[row, column, :3]
        there = camera._replace(camera_to_world=c.pose_matrix(camera.rotation, origin))
        assert_allclose(
            r.rays_from_cameras(there, SIZE)[row, column], rays[row, column], atol=1e-12
        )


def by_hand():
    """Two cameras two units from what they see, the second a quarter turn to the first's right.

    The first looks along +z from the origin, so they see (0, 0, 2); the second stands at (2, 0, 2)
    and looks along -x, with +z to its right.  Images of 16 x 16, focal length 16: the first of
    2 x 2 rays passes (4, 4), a quarter of a unit left and up at depth one.
    """
    K = np.array([[16.0, 0, 8], [0, 16, 8], [0, 0, 1]])
    second = np.array([[0.0, 0, -1, 2], [0, 1, 0, 0], [1, 0, 0, 2], [0, 0, 0, 1]])
    return c.Camera(np.stack([K, K]), np.stack([np.eye(4), second]))


UNIT = np.sqrt(1 + 2 / 16)


def test_corner_rays_worked_out_by_hand():
    rays = r.rays_from_cameras(by_hand(), (16, 16))
    assert_allclose(rays[0, 0, 0] * UNIT, [-0.25, -0.25, 1, 0, 0, 0], atol=1e-12)
    # (2, 0, 2) x (-1, -1/4, -1/4) = (0 + 1/2, -2 + 1/2, -1/2 - 0)
    assert_allclose(rays[1, 0, 0] * UNIT, [-1, -0.25, -0.25, 0.5, -1.5, -0.5], atol=1e-12)
    latents = rig_latents(by_hand(), (16, 16))
    assert latents.shape == (2, 2, 2, 16)
    x, y, z = 1, 0.25, -0.25  # left, up, forward
    m = [-0.5, 1.5, -0.5]
    expected = np.array([x, y, z, *m, x, y, z, *m, x, y, z, m[0]]) * 1.658 / UNIT
    assert_allclose(latents[1, 0, 0], expected, atol=1e-12)
    assert_allclose(latents[0, 1, 0, :6] * UNIT / 1.658, [0.25, -0.25, 1, 0, 0, 0], atol=1e-12)


def test_the_orbits_that_are_by_hand_give_the_same_latents():
    orbits = c.orbit_cameras(
        np.array([0, 90]), np.array([0, 0]), np.array([2.0, 2.0]), (16, 16), focal=1.0
    )
    assert_allclose(rig_latents(orbits, (16, 16)), rig_latents(by_hand(), (16, 16)), atol=1e-12)


def test_the_released_layout_is_pytorch3ds_unprojection(rng):
    """As the release: NDC grid of half pixels from +(1 - 1/n), unprojected at depth one.

    X_world = (X_camera - T) Rᵀ; the first camera has R = 1 and T = 0.
    """
    side, n = 64, 8
    cameras = random_cameras(rng, 3, size=(side, side))
    theirs = c.pytorch3d_from_camera(cameras, (side, side))
    R0, T0 = theirs.R[0], theirs.T[0]
    ticks = np.linspace(1 - 1 / n, -(1 - 1 / n), n)
    x, y = np.meshgrid(ticks, ticks)
    for view in range(3):
        R = R0.T @ theirs.R[view]
        T = theirs.T[view] - T0 @ R
        f, p = theirs.focal_length[view], theirs.principal_point[view]
        local = np.stack([(x - p[0]) / f[0], (y - p[1]) / f[1], np.ones_like(x)], axis=-1)
        points, center = (local - T) @ R.T, -T @ R.T
        d = points - center
        d /= np.linalg.norm(d, axis=-1, keepdims=True)
        m = np.cross(center, d)
        latents = rig_latents(cameras, (side, side))
        expected = 1.658 * np.concatenate([d, m, d, m, d, m[..., :1]], axis=-1)
        assert_allclose(latents[view], expected, atol=1e-12)


@pytest.mark.parametrize("normalised", [False, True])
def test_latents_do_not_depend_on_the_worlds_frame(rng, normalised):
    cameras = random_cameras(rng, 4)
    there = moved(cameras, random_pose(rng))
    if normalised:
        cameras, there = c.scaled_cameras(cameras), c.scaled_cameras(there)
    assert_allclose(rig_latents(there, SIZE), rig_latents(cameras, SIZE), atol=1e-12)


def test_latents_of_a_batch_of_rigs_are_those_of_each(rng):
    rigs = random_cameras(rng, 2, 3)
    each = [rig_latents(c.Camera(*(x[i] for x in rigs)), SIZE) for i in range(2)]
    assert_allclose(rig_latents(rigs, SIZE), each)


def test_the_first_view_has_no_moments(rng):
    latents = rig_latents(random_cameras(rng, 3), SIZE)
    assert not latents[0][..., [3, 4, 5, 9, 10, 11, 15]].any()
    assert np.abs(latents[1][..., [3, 4, 5]]).min() > 0


@pytest.mark.parametrize("channels", [6, 8, 16, 18])
def test_rays_come_back_from_latents_of_any_width(rng, channels):
    cameras = random_cameras(rng, 3)
    latents = rig_latents(cameras, SIZE, 8, channels)
    assert latents.shape == (3, 6, 8, channels)
    for i in range(6, channels):
        assert_allclose(latents[..., i], latents[..., i - 6])
    expected = r.rays_from_cameras(c.relative_cameras(cameras), SIZE)
    assert_allclose(r.rays_from_latents(latents), expected, atol=1e-14)


def test_copies_of_a_coordinate_are_averaged(rng):
    latents = rng.normal(size=(5, 4, 16))
    rays = r.opencv_rays(r.rays_from_latents(latents)) * 1.658
    assert_allclose(rays[..., 3], (latents[..., 3] + latents[..., 9] + latents[..., 15]) / 3)
    assert_allclose(rays[..., 4], (latents[..., 4] + latents[..., 10]) / 2)


def test_the_released_layout_turns_about_the_optical_axis(rng):
    cameras = random_cameras(rng, 2)
    rays = r.rays_from_cameras(cameras, SIZE)
    half_turn = np.diag([-1.0, -1, 1, 1])
    # Rays of the cameras in the turned world: so the moments' signs follow from the directions'.
    assert_allclose(
        r.released_rays(rays), r.rays_from_cameras(moved(cameras, half_turn), SIZE), atol=1e-12
    )
    assert_allclose(r.opencv_rays(r.released_rays(rays)), rays)


def test_orbits_have_latents_of_variance_near_one(rng):
    rigs = []
    for _ in range(100):
        azimuth, elevation = rng.uniform(-180, 180, 4), rng.uniform(-30, 60, 4)
        rigs.append(c.orbit_cameras(azimuth, elevation, np.full(4, 5.0), (64, 64)))
    rigs = c.Camera(*map(np.stack, zip(*rigs, strict=True)))
    assert_allclose(rig_latents(c.scaled_cameras(rigs), (64, 64)).std(), 1, atol=0.1)


def test_what_cannot_be_is_refused(rng):
    cameras = random_cameras(rng, 2)
    with pytest.raises(InputError, match="50 x 64 .* use 48 x 64"):
        rig_latents(cameras, (50, 64))
    with pytest.raises(InputError, match="5 channels"):
        rig_latents(cameras, SIZE, channels=5)


def test_numpy_and_jax_agree(rng):
    cameras = c.Camera(*(x.astype(np.float32) for x in random_cameras(rng, 2, 4)))
    compiled = jax.jit(lambda cameras: rig_latents(c.scaled_cameras(cameras), SIZE))
    ours, theirs = rig_latents(c.scaled_cameras(cameras), SIZE), compiled(cameras)
    assert ours.dtype == theirs.dtype == np.float32
    assert_allclose(theirs, ours, atol=2e-5 * np.abs(ours).max())
    assert_allclose(
        jax.jit(r.rays_from_latents)(theirs),
        r.rays_from_latents(ours),
        atol=2e-5 * np.abs(ours).max(),
    )

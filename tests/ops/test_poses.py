"""Cameras of rays: exact without noise, in proportion with it."""

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose
from rigs import angles, random_cameras
from scipy.spatial.transform import Rotation

from onediff_jax.errors import InputError
from onediff_jax.ops import cameras as c
from onediff_jax.ops import poses, rays

SIZE = (96, 128)


@pytest.fixture
def rng():
    return np.random.default_rng(2)


def orbits(rng, v=6, size=SIZE):
    """A rig as users give it, relative to its first camera."""
    azimuth, elevation = rng.uniform(-180, 180, v), rng.uniform(-30, 60, v)
    return c.relative_cameras(c.orbit_cameras(azimuth, elevation, rng.uniform(1.3, 2, v), size))


def uncalibrated(images, **changes):
    """Cameras of images of rays, each found alone, as one rig."""
    found = [poses.uncalibrated_camera_from_rays(image, **changes) for image in images]
    return c.Camera(*map(np.stack, zip(*found, strict=True)))


@pytest.mark.parametrize("size", [(48, 64), (64, 48), (64, 64)])
@pytest.mark.parametrize("factor", [4, 8])
def test_cameras_come_back_from_their_latents(rng, size, factor):
    cameras = random_cameras(rng, 2, 3, size=size)
    latents = rays.ray_latents(c.relative_cameras(cameras), size, factor)
    found = poses.cameras_from_rays(rays.rays_from_latents(latents), cameras.intrinsics, factor)
    expected = c.relative_cameras(cameras)
    assert angles(found, expected).max() < 1e-6
    assert_allclose(found.center, expected.center, atol=1e-9)
    assert_allclose(found.camera_to_world[..., 3, :], expected.camera_to_world[..., 3, :])


@pytest.mark.parametrize("size", [(48, 64), (64, 48)])
def test_intrinsics_come_back_too(rng, size):
    """Two focal lengths and an uncentred principal point, the right way round, and the pose."""
    cameras = random_cameras(rng, 3, size=size)
    found = uncalibrated(rays.rays_from_cameras(cameras, size))
    assert_allclose(found.intrinsics, cameras.intrinsics, atol=1e-6)
    assert angles(found, cameras).max() < 1e-6
    assert_allclose(found.center, cameras.center, atol=1e-6)


def test_a_ray_times_a_number_is_the_same_ray(rng):
    """Predicted directions are not unit vectors; their moments are as long as they are."""
    cameras = orbits(rng)
    images = rays.rays_from_cameras(cameras, SIZE)
    scaled = images * rng.uniform(0.3, 2, (*images.shape[:-1], 1))
    found = poses.cameras_from_rays(scaled, cameras.intrinsics)
    assert angles(found, cameras).max() < 1e-6
    assert_allclose(found.center, cameras.center, atol=1e-9)
    assert_allclose(uncalibrated(scaled).center, cameras.center, atol=1e-6)


def noisy_errors(rng, sigma, v=24):
    """Mean errors with noise on unit directions and moments: angle, centre, and uncalibrated
    angle, centre, and focal length."""
    cameras = orbits(rng, v)
    images = rays.rays_from_cameras(cameras, SIZE)
    images = images + sigma * rng.normal(size=images.shape)
    known, unknown = poses.cameras_from_rays(images, cameras.intrinsics), uncalibrated(images)
    focal = unknown.intrinsics[:, 0, 0] / cameras.intrinsics[:, 0, 0] - 1
    return np.array([
        angles(known, cameras).mean(),
        np.linalg.norm(known.center - cameras.center, axis=-1).mean(),
        angles(unknown, cameras).mean(),
        np.linalg.norm(unknown.center - cameras.center, axis=-1).mean(),
        np.abs(focal).mean(),
    ])  # fmt: skip


def test_errors_are_in_proportion_to_the_noise(rng):
    little, much = noisy_errors(rng, 0.002), noisy_errors(rng, 0.02)
    assert_allclose(much / little, 10, rtol=0.5)
    # 192 rays: known intrinsics give the angle to sigma / sqrt(192) a coordinate.
    assert much[0] < 4 * np.degrees(0.02 / np.sqrt(192))
    assert much[1] < 0.02


def test_much_noise_does_not_pull_the_centre_along_the_optical_axis(rng):
    """Least squares on the noisy directions themselves are off by a third here."""
    cameras = orbits(rng, 32)
    images = rays.rays_from_cameras(cameras, SIZE)
    images = images + 0.15 * rng.normal(size=images.shape)
    found = poses.cameras_from_rays(images, cameras.intrinsics)
    along = ((found.center - cameras.center) * cameras.rotation[..., 2]).sum(-1)
    assert abs(along.mean()) < 0.05
    flat = images.reshape(32, -1, 6)
    noisy = poses.center_from_rays(*poses.unit_rays(flat))
    assert abs(((noisy - cameras.center) * cameras.rotation[..., 2]).sum(-1).mean()) > 0.3


def test_rays_that_are_wild_do_not_disturb_unknown_intrinsics(rng):
    cameras = orbits(rng, 4)
    images = rays.rays_from_cameras(cameras, SIZE) + 1e-3 * rng.normal(size=(4, 12, 16, 6))
    wild = rng.random(images.shape[:-1]) < 0.3
    images[wild] = rng.normal(size=(wild.sum(), 6))
    found = uncalibrated(images)
    assert_allclose(found.intrinsics[:, 0, 0], cameras.intrinsics[:, 0, 0], rtol=0.01)
    assert angles(found, cameras).max() < 1
    assert np.linalg.norm(found.center - cameras.center, axis=-1).max() < 0.02


def test_the_same_seed_finds_the_same_camera(rng):
    image = rays.rays_from_cameras(orbits(rng, 2), SIZE)[1]
    image = image + 0.05 * rng.normal(size=image.shape)
    first, again = (poses.uncalibrated_camera_from_rays(image, seed=3) for _ in range(2))
    assert_allclose(first.camera_to_world, again.camera_to_world, rtol=0)


def test_the_centre_is_the_point_nearest_to_the_rays(rng):
    origins, direction = rng.normal(size=(2, 9, 3))
    direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
    center = poses.center_from_rays(direction, np.cross(origins, direction))

    def squares(point):
        return (np.cross(point - origins, direction) ** 2).sum()

    for step in np.concatenate([np.eye(3), -np.eye(3)]) * 1e-3:
        assert squares(center + step) > squares(center)


def test_a_homography_fits_at_its_least_squares(rng):
    """Its gradient vanishes: no small change of H lowers the sum of |Hp / |Hp| - d|²."""
    points = np.concatenate([rng.uniform(-1, 1, (200, 2)), np.ones((200, 1))], axis=-1)
    truth = Rotation.random(rng=rng).as_matrix() @ np.diag([0.4, 0.5, 1])
    direction = points @ truth.T
    direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
    direction += 0.01 * rng.normal(size=direction.shape)
    direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
    H, fits = poses.homography_from_directions(points, direction)
    assert fits.all() and np.linalg.det(H) > 0

    def squares(H):
        image = points @ H.T
        return ((image / np.linalg.norm(image, axis=-1, keepdims=True) - direction) ** 2).sum()

    for i in range(9):
        step = 1e-3 * np.eye(9)[i].reshape(3, 3)
        assert min(squares(H + step), squares(H - step)) > squares(H)


def test_rays_that_no_camera_has_are_refused(rng):
    constant = np.broadcast_to([0, 0, 1.0, 0, 0, 0], (6, 8, 6))
    with pytest.raises(InputError, match="48 rays .* give intrinsics"):
        poses.uncalibrated_camera_from_rays(constant)
    for image in rays.rays_from_cameras(orbits(rng), SIZE):
        with pytest.raises(InputError, match="192 rays .* a mirror's"):
            poses.uncalibrated_camera_from_rays(image[:, ::-1])


def test_numpy_and_jax_agree(rng):
    cameras = orbits(rng)
    images = rays.rays_from_cameras(cameras, SIZE) + 0.02 * rng.normal(size=(6, 12, 16, 6))
    images, K = images.astype(np.float32), cameras.intrinsics.astype(np.float32)
    ours = poses.cameras_from_rays(images, K)
    theirs = jax.jit(lambda rays, K: poses.cameras_from_rays(rays, K))(images, K)
    assert ours.camera_to_world.dtype == theirs.camera_to_world.dtype == np.float32
    assert_allclose(theirs.camera_to_world, ours.camera_to_world, atol=1e-4)

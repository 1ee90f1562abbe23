"""Cameras: frames of others, intrinsics, rigs and orbits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from rigs import angles, moved, random_cameras, random_pose
from scipy.spatial.transform import Rotation

from onediff_jax.errors import InputError
from onediff_jax.ops import cameras as c

SIZE = (48, 64)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def projected(cameras, points):
    """Pixels of world points (n 3) by the pinhole formula, K (R x + t) over its last coordinate."""
    world_to_camera = np.linalg.inv(cameras.camera_to_world)
    local = points @ world_to_camera[:3, :3].T + world_to_camera[:3, 3]
    pixels = local @ cameras.intrinsics.T
    return pixels[:, :2] / pixels[:, 2:]


@pytest.mark.parametrize(
    ("there", "back"),
    [
        (c.opencv_from_opengl, c.opengl_from_opencv),
        (c.opengl_from_opencv, c.opencv_from_opengl),
        (c.colmap_world_from_nerfstudio, c.nerfstudio_world_from_colmap),
        (c.nerfstudio_world_from_colmap, c.colmap_world_from_nerfstudio),
        (c.rigid_inverse, c.rigid_inverse),
    ],
)
def test_conversions_of_poses_are_undone_by_their_inverse_and_stay_rigid(rng, there, back):
    pose = random_pose(rng, 2, 5)
    assert_allclose(back(there(pose)), pose, atol=1e-15)
    assert np.abs(there(pose) - pose).max() > 0.1
    assert_allclose(np.linalg.det(there(pose)[..., :3, :3]), 1, atol=1e-12)


def test_a_pinhole_that_looks_down_gl_axes_looks_forward_in_cv_axes(rng):
    pose = random_pose(rng)
    right, up, back, center = (pose[:3, i] for i in range(4))
    opencv = c.opencv_from_opengl(pose)
    assert_allclose(opencv[:3].T, [right, -up, -back, center])


def test_the_world_before_nerfstudio_is_as_its_converter_says(rng):
    """The lines of nerfstudio's COLMAP converter, from a COLMAP pose with OpenCV axes."""
    colmap = random_pose(rng)
    converted = colmap.copy()
    converted[0:3, 1:3] *= -1
    converted = converted[np.array([1, 0, 2, 3]), :]
    converted[2, :] *= -1
    assert_allclose(
        c.colmap_world_from_nerfstudio(c.opencv_from_opengl(converted)), colmap, atol=1e-15
    )


def test_the_inverse_of_a_pose_is_numpys(rng):
    pose = random_pose(rng, 7)
    assert_allclose(c.rigid_inverse(pose), np.linalg.inv(pose), atol=1e-13)


@pytest.mark.parametrize("size", [(48, 64), (64, 48), (32, 32)])
def test_pytorch3d_cameras_project_by_its_published_definition(rng, size):
    """X_camera = X_world R + T; NDC = focal X / Z + principal point; x left, y up.

    The shorter side spans [-1, 1], so a pixel is size / 2 - NDC * min(size) / 2.
    """
    camera = random_cameras(rng, size=size)
    theirs = c.pytorch3d_from_camera(camera, size)
    local = np.concatenate([rng.normal(size=(20, 2)), rng.uniform(1, 3, (20, 1))], axis=-1)
    world = local @ camera.rotation.T + camera.center
    X, Y, Z = (world @ theirs.R + theirs.T).T
    ndc_x = theirs.focal_length[0] * X / Z + theirs.principal_point[0]
    ndc_y = theirs.focal_length[1] * Y / Z + theirs.principal_point[1]
    height, width = size
    screen = np.stack(
        [
            width / 2 - ndc_x * min(height, width) / 2,
            height / 2 - ndc_y * min(height, width) / 2,
        ],
        axis=-1,
    )
    assert_allclose(screen, projected(camera, world), atol=1e-9)
    assert Z.min() > 0
    assert_allclose(np.linalg.det(theirs.R), 1, atol=1e-12)


def test_pytorch3d_cameras_come_back(rng):
    cameras = random_cameras(rng, 2, 3)
    back = c.camera_from_pytorch3d(c.pytorch3d_from_camera(cameras, SIZE), SIZE)
    assert_allclose(back.intrinsics, cameras.intrinsics, atol=1e-12)
    assert_allclose(back.camera_to_world, cameras.camera_to_world, atol=1e-12)


def test_intrinsics_put_numbers_where_a_pinhole_has_them():
    K = c.intrinsics_matrix(*(np.array([x, x + 1]) for x in (50.0, 60.0, 31.0, 25.0)))
    assert_allclose(K[0], [[50, 0, 31], [0, 60, 25], [0, 0, 1]])
    assert_allclose(K[1], [[51, 0, 32], [0, 61, 26], [0, 0, 1]])


def test_an_angle_across_and_a_focal_length_are_inverse():
    assert_allclose(c.focal_from_angle(np.pi / 2, 64), 32)
    assert_allclose(np.degrees(c.angle_from_focal(c.ORBIT_FOCAL * 640, 640)), 39.60, atol=0.005)
    assert_allclose(c.angle_from_focal(c.focal_from_angle(0.7, 100), 100), 0.7)


def test_a_crop_and_a_resize_move_points_as_they_move_edges(rng):
    camera = random_cameras(rng)
    world = (rng.uniform(1, 2, (9, 3))) @ camera.rotation.T + camera.center
    before = projected(camera, world)
    cropped = camera._replace(intrinsics=c.cropped_intrinsics(camera.intrinsics, 5, 11))
    assert_allclose(projected(cropped, world), before - [11, 5], atol=1e-9)
    # Edges keep their places: 0 stays 0, width becomes the new width.
    K = c.resized_intrinsics(camera.intrinsics, (48, 64), (12, 15))
    resized = camera._replace(intrinsics=K)
    assert_allclose(projected(resized, world), before * [15 / 64, 12 / 48], atol=1e-9)
    assert_allclose(c.resized_intrinsics(K, (12, 15), (48, 64)), camera.intrinsics)


def test_a_block_of_pixels_resized_to_one_has_its_centre():
    """Of a 4 x 4 block at the corner the centre, (2, 2), becomes the first pixel's, (0.5, 0.5)."""
    K = np.array([[100.0, 0, 2], [0, 100, 2], [0, 0, 1]])
    assert_allclose(c.resized_intrinsics(K, (32, 64), (8, 16))[:2, 2], 0.5)


def test_the_nearest_rotation_is_scipys_alignment(rng):
    a, b = rng.normal(size=(2, 12, 3))
    expected = Rotation.align_vectors(b, a)[0].as_matrix()
    assert_allclose(c.nearest_rotation(b.T @ a), expected, atol=1e-12)
    mirrored = a * [1, 1, -1]
    found = c.nearest_rotation(mirrored.T @ a)
    assert_allclose(np.linalg.det(found), 1, atol=1e-12)
    assert_allclose(found, Rotation.align_vectors(mirrored, a)[0].as_matrix(), atol=1e-9)


def test_relative_cameras_begin_with_the_identity_and_keep_what_lies_between(rng):
    rigs = random_cameras(rng, 3, 4)
    relative = c.relative_cameras(rigs)
    assert_allclose(
        relative.camera_to_world[:, 0], np.broadcast_to(np.eye(4), (3, 4, 4)), atol=1e-14
    )
    # Its first centre exactly: the first view's moments are zeros.
    assert not relative.center[:, 0].any()
    expected = np.linalg.inv(rigs.camera_to_world[:, :1]) @ rigs.camera_to_world
    assert_allclose(relative.camera_to_world, expected, atol=1e-13)


def converging(rng, target, v=5):
    """Cameras anywhere whose optical axes all pass through a point in front of them."""
    centers = rng.normal(size=(v, 3)) * 2
    forward = target - centers
    forward /= np.linalg.norm(forward, axis=-1, keepdims=True)
    right = np.cross(forward, rng.normal(size=(v, 3)))
    right /= np.linalg.norm(right, axis=-1, keepdims=True)
    axes = np.stack([right, np.cross(forward, right), forward], axis=-1)
    return c.Camera(random_cameras(rng, v).intrinsics, c.pose_matrix(axes, centers))


def test_axes_that_meet_in_a_point_meet_there(rng):
    target = np.array([3.0, -1, 2])
    assert_allclose(c.optical_axes_intersection(converging(rng, target)), target, atol=1e-12)


def test_axes_that_do_not_meet_are_nearest_to_the_point_by_least_squares(rng):
    cameras = random_cameras(rng, 4)
    point = c.optical_axes_intersection(cameras)

    def squares(p):
        along = cameras.rotation[..., 2]
        return (np.cross(p - cameras.center, along) ** 2).sum()

    for step in np.concatenate([np.eye(3), -np.eye(3)]) * 1e-3:
        assert squares(point + step) > squares(point)


def test_a_rig_is_scaled_to_its_distance_whatever_its_world(rng):
    target = np.array([0.3, 0.2, -1])
    cameras = converging(rng, target)
    scaled = c.relative_cameras(c.scaled_cameras(cameras))
    assert_allclose(np.linalg.norm(c.optical_axes_intersection(scaled)), 1.7)
    distance = np.linalg.norm(target - cameras.center[0])
    expected = c.relative_cameras(cameras).center * 1.7 / distance
    assert_allclose(scaled.center, expected, atol=1e-12)
    assert_allclose(angles(scaled, c.relative_cameras(cameras)), 0, atol=1e-6)
    world = cameras._replace(camera_to_world=c.pose_matrix(cameras.rotation, 7.3 * cameras.center))
    again = c.relative_cameras(c.scaled_cameras(moved(world, random_pose(rng))))
    assert_allclose(again.camera_to_world, scaled.camera_to_world, atol=1e-12)


def rig_of(centers, axis=(0.0, 0, 1)):
    """Cameras with one orientation at centres."""
    right = np.cross(axis, [0.31, 0.9, -0.2])
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(axis, right), axis], axis=-1)
    centers = np.asarray(centers, np.float64)
    rotations = np.broadcast_to(rotation, (len(centers), 3, 3))
    return c.Camera(np.broadcast_to(np.eye(3), rotations.shape), c.pose_matrix(rotations, centers))


def test_a_rig_with_parallel_axes_is_scaled_by_its_width():
    cameras = rig_of([(1, 0, 0), (1, 4, 0), (1, 0, 2)])
    assert_allclose(c.optical_axes_intersection(cameras), [1, 0, 4])
    scaled = c.relative_cameras(c.scaled_cameras(cameras))
    assert_allclose(np.linalg.norm(scaled.center, axis=-1), [0, 1.7, 0.85])


def test_one_camera_and_cameras_in_one_point_are_left_as_they_are(rng):
    single = random_cameras(rng, 1)
    assert_allclose(c.optical_axes_intersection(single), single.center[0])
    assert_allclose(c.scaled_cameras(single).center, single.center)
    panorama = random_cameras(rng, 6)
    centers = np.array([1e3, 2, 3]) + 1e-12 * rng.normal(size=(6, 3))
    panorama = panorama._replace(camera_to_world=c.pose_matrix(panorama.rotation, centers))
    assert_allclose(c.scaled_cameras(panorama).center, centers)


def test_a_first_camera_where_the_axes_meet_does_not_blow_up_the_rig(rng):
    cameras = converging(rng, np.array([0.2, 0.5, 0.1]))
    centers = cameras.center.copy()
    centers[0] = [0.2, 0.5, 0.1]
    cameras = cameras._replace(camera_to_world=c.pose_matrix(cameras.rotation, centers))
    scaled = c.relative_cameras(c.scaled_cameras(cameras))
    assert_allclose(np.linalg.norm(scaled.center, axis=-1).max(), 17)


def test_rigs_in_a_batch_are_scaled_each_by_its_own(rng):
    rigs = [converging(rng, np.ones(3)), rig_of(rng.normal(size=(5, 3))), random_cameras(rng, 5)]
    batch = c.Camera(*map(np.stack, zip(*rigs, strict=True)))
    together = c.scaled_cameras(batch).camera_to_world
    assert_allclose(together, [c.scaled_cameras(rig).camera_to_world for rig in rigs], atol=1e-12)


def orbit(azimuth, elevation, distance=2.0, **changes):
    arrays = np.broadcast_arrays(*map(np.atleast_1d, (azimuth, elevation, distance)))
    return c.orbit_cameras(*arrays, **{"size": SIZE} | changes)


def test_orbits_stand_on_their_sphere_and_see_the_origin_in_the_middle(rng):
    azimuth, elevation = rng.uniform(-180, 180, 50), rng.uniform(-90, 90, 50)
    distance = rng.uniform(1, 3, 50)
    cameras = orbit(azimuth, elevation, distance)
    x, y, z = cameras.center.T
    assert_allclose(np.linalg.norm(cameras.center, axis=-1), distance)
    assert_allclose(np.degrees(np.arctan2(y, x)), azimuth, atol=1e-9)
    assert_allclose(np.degrees(np.arcsin(z / distance)), elevation, atol=1e-9)
    origin = np.linalg.inv(cameras.camera_to_world)[:, :3, 3]
    assert_allclose(origin, distance[:, None] * [0, 0, 1], atol=1e-12)
    assert_allclose(np.linalg.det(cameras.rotation), 1, atol=1e-12)
    assert_allclose(cameras.rotation[:, 2, 0], 0, atol=1e-15)  # level
    assert (cameras.rotation[:, 2, 1] < 0).all()  # down is down


def test_the_first_orbit_is_on_the_x_axis_and_a_greater_azimuth_is_to_its_right():
    cameras = orbit([0, 10, 0], [0, 0, 10])
    # In the world, x right of a camera at (2, 0, 0) that looks along -x is +y, and y down is -z.
    assert_allclose(
        cameras.camera_to_world[0], [[0, 0, -1, 2], [1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]],
        atol=1e-15,
    )  # fmt: skip
    _, right, above = c.relative_cameras(cameras).center
    assert right[0] > 0.3 and abs(right[1]) < 1e-12
    assert above[1] < -0.3 and abs(above[0]) < 1e-12


def test_orbits_at_the_poles_are_the_limits_of_those_beside_them():
    beside, pole = orbit([30, -70], [89.9999, -89.9999]), orbit([30, -70], [90, -90])
    assert_allclose(pole.camera_to_world, beside.camera_to_world, atol=1e-5)


def test_orbits_measure_the_focal_length_in_widths():
    assert_allclose(orbit(0, 0).intrinsics[0], [[88.8768, 0, 32], [0, 88.8768, 24], [0, 0, 1]])
    assert_allclose(orbit(0, 0, focal=0.5).intrinsics[0, 0, 0], 32)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0, 0, -1.5), r"camera's distance is -1.5; give a positive number"),
        ((0, 0, 0), "distance is 0; give a positive"),
        ((0, np.nan, 1.5), "elevation is nan; give degrees"),
        ((np.inf, 0, 1.5), "azimuth is inf; give degrees"),
        ((0, 0, np.inf), "distance is inf"),
    ],
)
def test_orbits_that_cannot_be_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        orbit(*values)


def test_numpy_and_jax_agree_on_rigs(rng):
    cameras = random_cameras(rng, 2, 4)
    cameras = c.Camera(*(x.astype(np.float32) for x in cameras))
    there = c.Camera(*map(jnp.asarray, cameras))
    functions = {
        "intersection": c.optical_axes_intersection,
        "scaled": c.scaled_cameras,
        "relative": c.relative_cameras,
        "pytorch3d": lambda x: c.pytorch3d_from_camera(x, SIZE),
        "back": lambda x: c.camera_from_pytorch3d(c.pytorch3d_from_camera(x, SIZE), SIZE),
        "opencv": lambda x: c.opencv_from_opengl(x.camera_to_world),
        "colmap": lambda x: c.colmap_world_from_nerfstudio(x.camera_to_world),
        "cropped": lambda x: c.cropped_intrinsics(x.intrinsics, 3, 4),
        "resized": lambda x: c.resized_intrinsics(x.intrinsics, SIZE, (24, 32)),
    }
    for name, function in functions.items():
        ours, theirs = function(cameras), jax.jit(function)(there)
        ours, theirs = (x if isinstance(x, tuple) else (x,) for x in (ours, theirs))
        for a, b in zip(ours, theirs, strict=True):
            assert isinstance(a, np.ndarray) and isinstance(b, jnp.ndarray), name
            assert a.dtype == b.dtype == np.float32, name
            assert_allclose(b, a, rtol=1e-4, atol=1e-4, err_msg=name)

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from onediff_jax.data.scenes import basic as scenes
from onediff_jax.data.scenes import basic_render as render

SPHERE, BOX = list(render.PRIMITIVES).index("sphere"), list(render.PRIMITIVES).index("box")


def camera(eye, target, field_of_view=45.0):
    return scenes.Camera(eye, target, field_of_view).arrays()


def scene(*objects, view, sun=(0.48, -0.6, 0.64), **changes):
    """Objects are (kind, center, half, yaw); the n-th has red, green, blue, ... for its color."""
    free = render.MAX_OBJECTS - len(objects)
    kind, center, half, yaw = zip(*objects, *[(0, (0, 0, 0), (1, 1, 1), 0)] * free, strict=True)
    arrays = render.SceneArrays(
        kind=np.array(kind, np.int32),
        active=np.arange(render.MAX_OBJECTS) < len(objects),
        center=np.array(center, np.float32),
        half=np.array(half, np.float32),
        yaw=np.array(yaw, np.float32),
        albedo=np.eye(render.MAX_OBJECTS, 3, dtype=np.float32),
        ground=np.full(3, 0.8, np.float32),
        horizon=np.full(3, 0.95, np.float32),
        zenith=np.array([0.6, 0.7, 0.9], np.float32),
        sun=np.array(sun, np.float32),
        ambient=np.asarray(0.4, np.float32),
        camera=view,
    )
    return arrays._replace(**changes)


def crowd():
    """Three objects that hide parts of one another."""
    return scene(
        (SPHERE, (-0.8, 0.0, 1.0), (1, 1, 1), 0.0),
        (BOX, (0.9, 0.6, 0.7), (0.8, 0.5, 0.7), 0.6),
        (SPHERE, (0.1, -1.6, 0.5), (0.5, 0.5, 0.5), 0.0),
        view=camera((0.5, -6.0, 2.0), (0.0, 0.0, 0.6)),
    )


def points_of(arrays, seen):
    """World points (h w 3) of a image's pixel centres."""
    size = len(seen.depth)
    ticks = np.arange(size) + 0.5
    pixels = np.stack([*np.meshgrid(ticks, ticks), np.ones((size, size))], axis=-1)
    local = pixels @ np.linalg.inv(render.intrinsics(arrays.camera, size)).T
    rotation, origin = arrays.camera.camera_to_world[:3, :3], arrays.camera.camera_to_world[:3, 3]
    return (local * seen.depth[..., None]) @ rotation.T + origin


def test_a_sphere_straight_ahead_has_the_depth_of_the_formula():
    arrays = scene(
        (SPHERE, (0, 0, 2), (1, 1, 1), 0.0), view=camera((0.0, -6.0, 2.0), (0.0, 0.0, 2.0))
    )
    seen = render.render(arrays, 33)
    assert seen.depth.dtype == np.float32
    assert_allclose(seen.depth[16, 16], 5, atol=1e-6)
    # A point at depth t along (x, y, 1) lies on the sphere: (xt)² + (yt)² + (t - 6)² = 1.
    x = (np.arange(33) - 16) / (float(arrays.camera.focal) * 33)
    a = 1 + x[None, :] ** 2 + x[:, None] ** 2
    root = 36 - 35 * a
    hit = root > 1e-3
    assert_array_equal(seen.instances[np.abs(root) > 1e-3] == 1, hit[np.abs(root) > 1e-3])
    assert_allclose(seen.depth[hit], ((6 - np.sqrt(np.maximum(root, 0))) / a)[hit], rtol=1e-5)


def test_the_ground_and_a_wall_have_the_depths_of_planes():
    view = camera((0.0, -5.0, 1.5), (0.0, 0.0, 1.5))
    ground = render.render(scene(view=view), 32)
    slope = (np.arange(32) + 0.5 - 16) / (float(view.focal) * 32)
    expected = np.where(slope > 0, np.minimum(1.5 / np.abs(slope), render.FAR), render.FAR)
    assert_allclose(ground.depth, np.repeat(expected[:, None], 32, axis=1), rtol=1e-5)
    wall = render.render(scene((BOX, (0, 1, 9), (9, 1, 9), 0.0), view=view), 32)
    above = wall.instances == 1
    assert above[:20].all()
    assert_allclose(wall.depth[above], 5, rtol=1e-6)


def test_depths_unproject_onto_the_surfaces():
    arrays = crowd()
    seen = render.render(arrays, 64, supersample=1)
    points = points_of(arrays, seen)
    on_ground = (seen.instances == 0) & (seen.depth < render.FAR)
    assert_allclose(points[on_ground][:, 2], 0, atol=1e-5)
    for i, kind in enumerate(arrays.kind):
        local = points[seen.instances == i + 1] - arrays.center[i]
        c, s = np.cos(arrays.yaw[i]), np.sin(arrays.yaw[i])
        local = local @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) / arrays.half[i]
        radius = np.linalg.norm(local, axis=1) if kind == SPHERE else np.abs(local).max(axis=1)
        assert len(radius) > 50
        assert_allclose(radius, 1, atol=1e-5)


def test_the_nearest_object_is_the_one_seen():
    arrays = crowd()
    seen = render.render(arrays, 48, supersample=1)
    alone = [
        render.render(arrays._replace(active=np.arange(3) == i), 48, supersample=1)
        for i in range(3)
    ]
    depths = np.stack([np.where(a.instances > 0, a.depth, np.inf) for a in alone])
    nearest = np.where(np.isfinite(depths).any(axis=0), depths.argmin(axis=0) + 1, 0)
    assert_array_equal(seen.instances, nearest)
    assert (np.isfinite(depths).sum(axis=0) > 1).sum() > 50  # there was something to decide
    assert_allclose(seen.depth, np.min([a.depth for a in alone], axis=0), rtol=1e-6)


def test_numpy_and_jax_agree():
    batch = [crowd(), crowd()._replace(sun=np.array([-0.6, -0.48, 0.64], np.float32))]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *batch)
    draw = jax.jit(jax.vmap(lambda arrays: render.render(arrays, 32, xp=jnp)))
    for arrays, seen in zip(batch, zip(*map(np.asarray, draw(stacked)), strict=True), strict=True):
        expected = render.render(arrays, 32)
        image, depth, instances = seen
        same = instances == expected.instances
        assert same.mean() > 0.998  # a ray along an edge may round to either side
        assert_allclose(depth[same], expected.depth[same], rtol=1e-4)
        assert np.abs(image - expected.image).mean() < 1e-4


def test_shadows_darken_the_ground_but_not_to_black():
    view = camera((0.0, -6.0, 3.5), (0.0, 0.0, 0.5))
    ball = scene((SPHERE, (0, 0, 1), (1, 1, 1), 0.0), view=view)
    with_ball, without = render.render(ball, 48), render.render(scene(view=view), 48)
    away = (with_ball.instances == 0) & (with_ball.depth < render.FAR)
    inner = away & ~np.pad(~away, 1)[:-2, 1:-1] & ~np.pad(~away, 1)[1:-1, :-2]
    ratio = with_ball.image.mean(axis=-1)[inner] / without.image.mean(axis=-1)[inner]
    assert ratio.max() < 1.001
    assert 0.25 < ratio.min() < 0.75
    assert ((ratio > 0.8) & (ratio < 0.95)).any()  # the edge is soft


def test_a_face_towards_the_sun_has_its_own_color_and_the_far_side_is_dark():
    view = camera((0.0, 0.001, 9.0), (0.0, 0.0, 0.0))
    arrays = scene((BOX, (0, 0, 1), (1, 1, 1), 0.0), view=view, sun=(0.0, 0.0, 1.0))
    assert_allclose(render.render(arrays, 9).image[4, 4], [1, 0, 0], atol=1e-3)
    side = render.render(
        arrays._replace(camera=camera((0.0, -6.0, 1.0), (0.0, 0.0, 1.0))), 9
    ).image[4, 4]
    assert 0.3 < side[0] < 0.8
    assert_allclose(side[1:], 0, atol=1e-6)


def test_edges_are_averaged_over_their_pixels():
    arrays = crowd()
    hard, soft = render.render(arrays, 32, supersample=1), render.render(arrays, 32, supersample=5)
    fine = render.render(arrays, 160, supersample=1).image.reshape(32, 5, 32, 5, 3)
    fine = render.linear_to_srgb(render.srgb_to_linear(fine).mean(axis=(1, 3)))
    assert np.abs(soft.image - fine).mean() < 0.5 * np.abs(hard.image - fine).mean()
    assert_array_equal(soft.instances, hard.instances)
    assert_array_equal(soft.depth, hard.depth)
    with pytest.raises(ValueError, match="supersample=2.*use 1 or 3"):
        render.render(arrays, 8, supersample=2)


def test_a_box_turned_by_a_right_angle_is_the_box_with_its_sides_swapped():
    view = camera((1.0, -6.0, 2.5), (0.0, 0.0, 0.7))
    one = scene((BOX, (0, 0, 0.8), (1.0, 0.5, 0.8), np.pi / 2), view=view)
    other = scene((BOX, (0, 0, 0.8), (0.5, 1.0, 0.8), 0.0), view=view)
    assert_allclose(render.render(one, 24).image, render.render(other, 24).image, atol=1e-3)


def test_cameras_are_rotations_and_look_at_their_targets():
    view = scenes.Camera((2.0, -5.0, 3.0), (0.3, 0.2, 0.5), 45.0)
    pose = view.arrays().camera_to_world.astype(np.float64)
    assert_allclose(pose[:3, :3].T @ pose[:3, :3], np.eye(3), atol=1e-6)
    assert_allclose(np.linalg.det(pose[:3, :3]), 1, atol=1e-6)
    assert_allclose(
        np.linalg.inv(pose) @ [0.3, 0.2, 0.5, 1], [0, 0, np.hypot(1.7, np.hypot(5.2, 2.5)), 1],
        atol=1e-5,
    )  # fmt: skip
    assert pose[2, 0] == 0  # level
    assert pose[2, 1] < 0  # y points down
    K = render.intrinsics(view.arrays(), 64)
    assert_allclose(K, [[77.25, 0, 32], [0, 77.25, 32], [0, 0, 1]], atol=0.01)


def test_srgb_and_linear_light_are_inverse():
    values = np.linspace(0, 1, 101)
    assert_allclose(render.linear_to_srgb(render.srgb_to_linear(values)), values, atol=1e-6)


def test_what_loader_workers_import_does_not_import_jax_or_tensorflow():
    code = (
        "import sys, onediff_jax.data.scenes.basic_builder;"
        "print([m for m in ('jax', 'tensorflow') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"

"""Images of full scenes, beside the basic ray tracer and beside what depth says."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from onediff_jax.data.scenes import basic as scenes
from onediff_jax.data.scenes import basic_render as render
from onediff_jax.data.scenes import parts
from onediff_jax.data.scenes import render as full_render

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
SUN = (0.48, -0.6, 0.64)
RED, BLUE = (0.9, 0.1, 0.1), (0.1, 0.2, 0.9)
VIEW = scenes.Camera((0.5, -6.0, 2.0), (0.0, 0.0, 0.6), 45.0).arrays()


def surroundings(ambient=0.4):
    colors = ((0.8, 0.8, 0.8), (0.95, 0.95, 0.95), (0.6, 0.7, 0.9), SUN)
    return full_render.Surroundings(
        *(np.array(c, np.float32) for c in colors), np.asarray(ambient, np.float32)
    )


def shot(*things, size=48, camera=VIEW):
    solids = parts.packed(things)
    (seen,) = full_render.render([full_render.Shot(solids, surroundings(), camera)], size)
    return seen


def crowd():
    box = parts.box(np.zeros(3), np.array((0.5, 0.4, 0.7)), RED).placed(0.6, (0.9, 0.6, 0.7))
    cone = parts.tapered(np.array((-1.0, 0.2, 0.9)), np.array((0.7, 0.7, 0.9)), 0.0, BLUE)
    limbs = [
        parts.capsule(np.array((0.1, -1.6, 0.3)), np.array((0.1, -1.4, 1.3)), 0.25, RED),
        parts.capsule(np.array((0.1, -1.4, 1.3)), np.array((0.7, -1.5, 1.6)), 0.2, BLUE),
    ]
    return [box], [cone], limbs


def points_of(seen, camera):
    size = len(seen.depth)
    ticks = np.arange(size) + 0.5
    pixels = np.stack([*np.meshgrid(ticks, ticks), np.ones((size, size))], axis=-1)
    return pixels @ np.linalg.inv(render.intrinsics(camera, size)).T * seen.depth[..., None]


def test_balls_and_boxes_look_as_the_basic_ray_tracer_draws_them():
    """Another program for the same light: few samples here, many there."""
    ball = parts.capsule(np.array((-0.8, 0, 0.8)), np.array((-0.8, 0, 0.8)), 0.8, RED)
    box = parts.box(np.zeros(3), np.array((0.5, 0.6, 0.7)), BLUE)
    seen = shot([ball], [box.placed(0.6, (1.1, 0.3, 0.7))])
    basic = render.SceneArrays(
        kind=np.array((0, 1, 0), np.int32),
        active=np.array((True, True, False)),
        center=np.array(((-0.8, 0, 0.8), (1.1, 0.3, 0.7), (0, 0, 0)), np.float32),
        half=np.array(((0.8,) * 3, (0.5, 0.6, 0.7), (1,) * 3), np.float32),
        yaw=np.array((0, 0.6, 0), np.float32),
        albedo=np.array((RED, BLUE, RED), np.float32),
        **dict(zip(("ground", "horizon", "zenith", "sun", "ambient"), surroundings(), strict=True)),
        camera=VIEW,
    )
    expected = render.render(basic, 48, supersample=5)
    assert_array_equal(seen.instances, expected.instances)
    assert_allclose(seen.depth, expected.depth, rtol=1e-4)
    difference = np.abs(seen.image - expected.image)
    assert difference.mean() < 0.006
    assert np.median(difference) < 0.004


def test_depths_unproject_onto_the_surfaces():
    things = crowd()
    seen = shot(*things)
    local = points_of(seen, VIEW)
    world = local @ VIEW.camera_to_world[:3, :3].T + VIEW.camera_to_world[:3, 3]
    on_ground = (seen.instances == 0) & (seen.depth < render.FAR)
    assert_allclose(world[on_ground][:, 2], 0, atol=1e-4)
    capsules = [
        (p.first, p.last - p.first, p.shape) for p in things[2]
    ]  # the union's surface: a point is on one and outside the other
    gaps = []
    for start, axis, radius in capsules:
        away = world[seen.instances == 3] - start
        share = np.clip(away @ axis / (axis @ axis), 0, 1)
        gaps.append(np.linalg.norm(away - share[:, None] * axis, axis=1) - radius)
    assert len(gaps[0]) > 50
    assert_allclose(np.min(gaps, axis=0), 0, atol=1e-3)


def test_normals_are_square_to_what_depth_shows():
    seen = shot(*crowd(), size=120)
    points = points_of(seen, VIEW)
    across = points[1:-1, 2:] - points[1:-1, :-2]
    down = points[2:, 1:-1] - points[:-2, 1:-1]
    expected = np.cross(down, across)
    expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
    expected *= -np.sign((expected * points[1:-1, 1:-1]).sum(-1, keepdims=True))
    inner = np.ones((118, 118), bool)
    for y in (0, 1, 2):
        for x in (0, 1, 2):
            inner &= seen.instances[y : y + 118, x : x + 118] == seen.instances[1:-1, 1:-1]
    inner &= seen.depth[1:-1, 1:-1] < render.FAR
    cosine = (expected * seen.normals[1:-1, 1:-1]).sum(-1)
    for instance in range(4):
        here = inner & (seen.instances[1:-1, 1:-1] == instance)
        assert here.sum() > 100
        assert (cosine[here] > 0.98).mean() > 0.9  # not across an object's own edges
    sky = seen.depth == render.FAR
    assert (np.linalg.norm(seen.normals, axis=-1)[~sky] > 0.999).all()


def test_shots_of_other_scenes_and_cameras_do_not_matter():
    """Each is what it is alone: families, numbers, lights and windows are kept apart."""
    above = scenes.Camera((0.0, -4.0, 4.0), (0.0, 0.0, 0.5), 50.0).arrays()
    box, cone, limbs = crowd()
    shots = [
        full_render.Shot(parts.packed(things), surroundings(ambient), camera)
        for things, ambient, camera in (
            ([box, limbs], 0.4, VIEW),
            ([limbs, cone, box], 0.6, above),
            ([], 0.5, VIEW),
            ([cone], 0.3, VIEW),
        )
    ]
    together = full_render.render(shots, 24)
    for one, among in zip(shots, together, strict=True):
        (alone,) = full_render.render([one], 24)
        for ours, theirs in zip(alone, among, strict=True):
            assert_allclose(ours, theirs, atol=1e-6)


def test_pixels_where_nothing_changes_lose_little_by_their_single_ray(monkeypatch):
    quick = shot(*crowd(), size=64)
    monkeypatch.setattr(full_render, "CONTRAST", -1.0)  # five rays everywhere
    full = shot(*crowd(), size=64)
    assert_array_equal(quick.depth, full.depth)
    difference = np.abs(quick.image - full.image).max(axis=-1)
    assert 0 < difference.mean() < 1e-3
    assert difference.max() < 0.02


def test_no_ray_that_meets_a_solid_is_left_out(monkeypatch):
    """Beside all rays on all solids."""

    def every_ray(around, *arguments):
        rays = len(arguments[1].x) if len(arguments) == 2 else len(arguments[0].x)
        return [np.arange(rays)] * len(around.radii)

    above = scenes.Camera((0.0, -2.5, 3.0), (0.0, 0.0, 0.5), 80.0).arrays()
    for camera in (VIEW, above):
        windowed = shot(*crowd(), size=64, camera=camera)
        with monkeypatch.context() as patched:
            patched.setattr(full_render, "seen_rays", every_ray)
            patched.setattr(full_render, "sunward_rays", every_ray)
            for ours, theirs in zip(windowed, shot(*crowd(), size=64, camera=camera), strict=True):
                assert_allclose(ours, theirs, atol=1e-6)


def test_bands_alternate_across_the_height():
    plain = parts.tapered(np.array((0, 0, 1.0)), np.array((0.8, 0.8, 1.0)), 1.0, RED)
    striped = parts.Part(**{**vars(plain), "second": BLUE, "bands": 5.0})
    level = scenes.Camera((0.0, -6.0, 1.0), (0.0, 0.0, 1.0), 30.0).arrays()
    column = shot([striped], size=96, camera=level).image[:, 48]
    blue = (column[:, 2] > column[:, 0]) & (
        shot([plain], camera=level, size=96).instances[:, 48] > 0
    )
    changes = np.flatnonzero(np.diff(blue.astype(int)))
    assert len(changes) == 4  # red, blue, red, blue, red
    assert_allclose(np.diff(changes), np.diff(changes).mean(), atol=1.5)


def test_a_highlight_lies_where_the_sun_is_mirrored():
    matte = parts.capsule(np.array((0, 0, 1.0)), np.array((0, 0, 1.0)), 1.0, (0.3, 0.05, 0.05))
    glossy = parts.Part(**{**vars(matte), "gloss": 1.0})
    dull, shiny = shot([matte], size=64), shot([glossy], size=64)
    extra = (shiny.image - dull.image).sum(axis=-1)
    assert (extra >= 0).all() and (extra[shiny.instances == 0] < 0.3).all()
    row, column = np.unravel_index(extra.argmax(), extra.shape)
    normal = VIEW.camera_to_world[:3, :3] @ shiny.normals[row, column]
    ray = VIEW.camera_to_world[:3, :3] @ points_of(shiny, VIEW)[row, column]
    mirrored = ray - 2 * (ray @ normal) * normal
    assert mirrored @ SUN / np.linalg.norm(mirrored) > 0.99


def test_a_limb_throws_its_shadow_on_another():
    box = parts.box(np.array((0, 0, 0.5)), np.array((1.0, 1.0, 0.5)), (0.8, 0.8, 0.8))
    # A bar between the box's top and the sun.
    middle = np.array((0, 0, 1.0)) + 0.8 * np.array(SUN)
    bar = parts.capsule(middle - (0.6, 0, 0), middle + (0.6, 0, 0), 0.12, RED)
    above = scenes.Camera((0.0, 0.5, 7.0), (0.0, 0.0, 1.0), 30.0).arrays()
    lit, shaded = shot([box], camera=above), shot([box], [bar], camera=above)
    both = (lit.instances == 1) & (shaded.instances == 1)
    ratio = shaded.image.mean(-1)[both] / lit.image.mean(-1)[both]
    assert 0.3 < ratio.min() < 0.85
    assert (ratio > 0.98).mean() > 0.4


def test_an_empty_scene_shows_ground_and_sky():
    seen = shot()
    assert (seen.instances == 0).all()
    assert_allclose(seen.normals[-1, 0] @ VIEW.camera_to_world[:3, :3].T, (0, 0, 1), atol=1e-6)


def test_instances_are_the_things_and_not_their_parts():
    seen = shot(*crowd())
    assert set(np.unique(seen.instances)) == {0, 1, 2, 3}
    assert_array_equal(parts.packed(crowd()[::-1]).instance, [3, 2, 1, 1])

"""Which rays may meet a solid, beside every ray tried on every solid."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from onediff_jax.data.scenes import culling, primitives, render
from onediff_jax.data.scenes.geometry import PinholeCamera, Vector
from onediff_jax.data.scenes.shading import SUN_RADIUS, sun_directions
from onediff_jax.data.scenes.solids import entries, pairs_of, shadowed_rays

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
SIZE, RED = 40, (0.9, 0.1, 0.1)


def crowd(rng):
    """Solids of every family that stand on the ground, anywhere and turned anyhow."""
    objects = []
    for _ in range(3):
        place, half = (*rng.uniform(-2, 2, 2), 0.0), rng.uniform(0.2, 0.9, 3)
        box = primitives.box(np.array((0, 0, half[2])), half, RED)
        cone = primitives.tapered(
            np.array((0, 0, half[0])), half[[1, 1, 0]], float(rng.choice((0, 1))), RED
        )
        radius, low = rng.uniform(0.1, 0.5), rng.uniform(0.6, 1.0)
        limb = primitives.capsule(np.array((0, 0, low)), rng.uniform(0.5, 2, 3), radius, RED)
        turns = (rng.uniform(0, 3), 0.0, 0.0)
        objects += [[p.at(yaw, place)] for p, yaw in zip((box, cone, limb), turns, strict=True)]
    return primitives.solids_of(objects)


def hits(solids, rays, origin, direction):
    """Solid and ray of all that meet."""
    pairs = pairs_of(rays)
    met = np.isfinite(entries(solids, pairs, origin, direction))
    return np.stack([pairs.solid[met], pairs.ray[met]], axis=1)


@pytest.mark.parametrize("seed", range(4))
def test_every_ray_of_the_camera_that_meets_a_solid_is_tried_on_it(seed):
    rng = np.random.default_rng(seed)
    solids = crowd(rng)
    eye = (*rng.uniform(-4, 4, 2), rng.uniform(0.3, 4))  # some among the solids or inside one
    camera = PinholeCamera(eye, tuple(rng.uniform(-1, 1, 3)), 60.0)
    slopes = render.central_slopes(camera, SIZE)
    rays = render.rays([camera], [slopes])
    found = culling.seen_rays(culling.bounding_balls(solids), camera, slopes)
    every = [np.arange(SIZE**2)] * len(solids.instance)
    assert_array_equal(hits(solids, found, *rays), hits(solids, every, *rays))


def test_few_rays_are_tried_in_vain():
    camera = PinholeCamera((0.5, -6.0, 2.0), (0.0, 0.0, 0.6), 45.0)
    slopes = render.central_slopes(camera, SIZE)
    solids = crowd(np.random.default_rng(0))
    found = culling.seen_rays(culling.bounding_balls(solids), camera, slopes)
    met = hits(solids, found, *render.rays([camera], [slopes]))
    assert len(met) > 0.3 * sum(map(len, found))


@pytest.mark.parametrize("seed", range(4))
def test_every_point_that_a_solid_shadows_is_tried_on_it(seed):
    rng = np.random.default_rng(seed)
    solids, samples = crowd(rng), 5
    height, side = rng.uniform(0.5, 1.0), rng.uniform(0, 7)
    sun = np.array((np.cos(side) * np.cos(height), np.sin(side) * np.cos(height), np.sin(height)))
    towards = sun_directions(sun, samples).map(lambda c: np.resize(c, 4000))
    assert np.linalg.norm([*towards.map(lambda c: c[:samples])] - sun[:, None], axis=0).max() > (
        0.9 * SUN_RADIUS
    )
    low = np.where(rng.random(4000) < 0.7, 0, rng.uniform(0, 1.5, 4000))  # most on the ground
    point = Vector(*rng.uniform(-4, 4, (2, 4000)), low)
    nobody, wanted = np.full(4000, -1), rng.random(4000) < 0.8
    found = culling.sunward_rays(culling.bounding_balls(solids), point, sun, wanted)
    assert wanted[np.concatenate(found)].all()
    every = [np.arange(4000)] * len(solids.instance)
    dark = shadowed_rays(solids, pairs_of(every), point, towards, nobody)
    assert 0.05 < dark.mean() < 0.9
    assert_array_equal(
        shadowed_rays(solids, pairs_of(found), point, towards, nobody)[wanted], dark[wanted]
    )

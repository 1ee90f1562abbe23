import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from places import ROOT

TOOLS = ROOT / "tools" / "datasets"
sys.path.insert(0, str(TOOLS))
from furniture import meshes, views  # noqa: E402

sys.path.remove(str(TOOLS))
RENDERS = "needs the extra render3d"
SIZE = 48
SQUARE = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
RED, GLASS = (255, 0, 0, 255), (0, 0, 255, 102)  # of opacity 0.4


def plain(color):
    return np.array([[color]], np.uint8)


def mesh(quads, images, material=None):
    """A mesh of squares, four corners each in order, with the whole of an image on each."""
    quads = np.asarray(quads, float)
    corners = quads[:, [[0, 1, 2], [0, 2, 3]]].reshape(-1, 3, 3)
    uv = np.tile(SQUARE[[[0, 1, 2], [0, 2, 3]]].astype(float), (len(quads), 1, 1))
    material = np.repeat(material or [0] * len(quads), 2)
    normals = meshes.corner_normals(corners)
    return meshes.Mesh(corners, normals, uv, material, meshes.textures_of(images))


def box():
    """The six sides of a unit cube."""
    sides = []
    for axis in range(3):
        for sign in (-0.5, 0.5):
            side = np.insert(SQUARE - 0.5, axis, sign, axis=1)
            sides.append(side if (sign > 0) ^ (axis == 1) else side[::-1])
    return np.array(sides)


def rays(camera):
    """Rays through pixel centres, of depth 1, in the world."""
    x, y = np.meshgrid(*[(np.arange(SIZE) + 0.5) / SIZE - 0.5] * 2)
    towards = np.stack([x / views.FOCAL, -y / views.FOCAL, -np.ones_like(x)], -1)
    return towards @ camera[:3, :3].T


def places(camera, depth):
    return camera[:3, 3] + rays(camera) * depth[..., None]


def projected(camera, points):
    """Column, row and depth of points in the world; the first pixel's centre is 0."""
    x, y, z = np.moveaxis((points - camera[:3, 3]) @ camera[:3, :3], -1, 0)
    column, row = (0.5 + views.FOCAL * np.array([x, -y]) / -z) * SIZE - 0.5
    return column, row, -z


def test_light_and_srgb_are_inverse_and_meet_the_standard():
    values = np.linspace(0, 1, 50)
    assert meshes.linear_from_srgb(np.array(0.5)) == pytest.approx(0.21404114)  # IEC 61966-2-1
    assert meshes.linear_from_srgb(np.array(0.02)) == pytest.approx(0.02 / 12.92)
    assert views.srgb_from_linear(meshes.linear_from_srgb(values)) == pytest.approx(values)


def colors_at(textures, *uv, width=1.0):
    n = len(uv)
    found = meshes.texels_at(textures, np.zeros(n, int), np.array(uv, float), np.full(n, width))
    light = (found[:, :3] - meshes.GLOSS) / (1 - meshes.GLOSS)  # of opaque texels
    return (views.srgb_from_linear(light) * 255).round().astype(int)


def test_a_texture_has_its_first_row_on_top_is_interpolated_and_repeats():
    image = np.zeros((2, 4, 4), np.uint8)
    image[..., 0], image[..., 1], image[..., 3] = [[10, 20, 30, 40], [50, 60, 70, 80]], 7, 255
    textures = meshes.textures_of([image])
    corners = colors_at(textures, (1 / 8, 3 / 4), (7 / 8, 3 / 4), (1 / 8, 1 / 4), (9 / 8, -3 / 4))
    assert corners[:, 0].tolist() == [10, 40, 50, 50]
    between = meshes.linear_from_srgb(np.array([10, 20]) / 255).mean()
    expected = views.srgb_from_linear(between) * 255
    assert colors_at(textures, (1 / 4, 3 / 4))[0, 0] == pytest.approx(expected, abs=1)


def test_wide_rays_see_the_mean_of_what_they_cover():
    checks = np.zeros((64, 64, 4), np.uint8)
    checks[..., 3] = 255
    checks[::2, ::2, :3] = checks[1::2, 1::2, :3] = 255
    textures = meshes.textures_of([checks, plain(RED)])
    seen = colors_at(textures, (0.31, 0.77), width=4.0)
    assert seen == pytest.approx(188, abs=1)  # half of the light, in sRGB
    assert set(colors_at(textures, (0.5 / 64, 0.5 / 64))[0]) <= {0, 255}


def test_clear_texels_lend_no_color():
    image = np.array([[(255, 255, 255, 0), (200, 0, 0, 255)]], np.uint8)
    texel = meshes.texels_at(
        meshes.textures_of([image]), np.zeros(1, int), np.array([[0.5, 0.5]]), np.ones(1)
    )[0]
    red = meshes.linear_from_srgb(np.array(200 / 255))
    assert texel[3] == pytest.approx(0.5)
    assert texel[0] == pytest.approx((meshes.GLOSS + (1 - meshes.GLOSS) * red) / 2, abs=1e-4)


def test_a_cube_keeps_its_edges_however_its_faces_are_wound():
    leaning = box() @ [[1, 0, 0.6], [0, 1, 0], [0, 0, 1]]  # edges of 59, 90 and 121 degrees
    cube = mesh(leaning, [plain(RED)])
    corners = cube.corners.copy()
    corners[::3] = corners[::3, ::-1]
    for turned in (cube.corners, corners):
        normals = meshes.corner_normals(turned)
        cross = np.cross(turned[:, 1] - turned[:, 0], turned[:, 2] - turned[:, 0])
        cross /= np.linalg.norm(cross, axis=1, keepdims=True)
        assert normals == pytest.approx(np.repeat(cross[:, None], 3, axis=1))


def test_a_ball_is_round_however_its_faces_are_wound():
    a, e = np.meshgrid(np.linspace(0, 2 * np.pi, 25), np.linspace(-1.4, 1.4, 15))
    ball = np.stack([np.cos(a) * np.cos(e), np.sin(a) * np.cos(e), np.sin(e)], -1) / 2
    quads = np.stack([ball[:-1, :-1], ball[:-1, 1:], ball[1:, 1:], ball[1:, :-1]], 2)
    round_mesh = mesh(quads.reshape(-1, 4, 3), [plain(RED)])
    corners = round_mesh.corners.copy()
    corners[1::3] = corners[1::3, ::-1]
    for turned in (round_mesh.corners, corners):
        along = np.abs((meshes.corner_normals(turned) * turned).sum(-1)) * 2
        assert along.min() > np.cos(np.radians(6))  # half a face and what the poles lack


def scene(vertices, **look):
    material = SimpleNamespace(**look)
    visual = SimpleNamespace(material=material, uv=None)
    part = SimpleNamespace(vertices=np.array(vertices, float), faces=[[0, 1, 2]], visual=visual)
    return SimpleNamespace(geometry={"part": part, "points": SimpleNamespace(faces=[])})


def test_a_model_stands_upright_in_the_unit_box_and_faces_forward():
    # A file's x is right, y up, z towards the viewer; the world's z is up, -y towards the viewer.
    found = meshes.mesh_of(scene([[0, 0, 0], [4, 0, 1], [0, 2, 0]], diffuse=RED), np.eye(3))
    expected = [[-0.5, 0.125, -0.25], [0.5, -0.125, -0.25], [-0.5, 0.125, 0.25]]
    assert found.corners == pytest.approx(np.array([expected]))
    lying = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]])  # takes a file's z to y
    turned = meshes.mesh_of(scene([[0, 0, 0], [4, -1, 0], [0, 0, 2]], diffuse=RED), lying)
    assert turned.corners == pytest.approx(np.array([expected]))


def test_models_without_a_usable_face_are_refused():
    for vertices in ([[0, 0, 0], [1, 0, 0], [np.nan, 1, 0]], [[0, 0, 0], [1, 0, 0], [2, 0, 0]]):
        with pytest.raises(ValueError, match="no faces"):
            meshes.mesh_of(scene(vertices, diffuse=RED), np.eye(3))


@pytest.mark.parametrize(("kwargs", "opacity"), [({"d": ["0.4"]}, 102), ({}, 255), (None, 255)])
def test_a_material_is_as_opaque_as_it_says(kwargs, opacity):
    look = SimpleNamespace(diffuse=RED, image=None, kwargs=kwargs)
    assert meshes.image_of(look, True).tolist() == [[[255, 0, 0, opacity]]]


def test_directions_are_spread_evenly_over_the_sphere_and_the_sun():
    everywhere = views.spread(36)
    assert np.linalg.norm(everywhere, axis=1) == pytest.approx(1)
    assert everywhere.T @ everywhere / 36 == pytest.approx(np.eye(3) / 3, abs=0.01)
    sun = np.array(views.SUN) / np.linalg.norm(views.SUN)
    apart = np.arccos(views.disc(9) @ sun)
    assert apart.max() < views.SUN_RADIUS and apart.mean() > views.SUN_RADIUS / 2


@pytest.fixture(scope="module")
def cube():
    """A cube with a smooth texture on every side, and what cameras around it see."""
    pytest.importorskip("embreex", reason=RENDERS)
    y, x = np.mgrid[:32, :32] / 31
    image = np.stack([90 + 150 * x, 90 + 150 * y, 200 - 90 * x * y, np.full_like(x, 255)], -1)
    caster = views.Caster(mesh(box(), [image.astype(np.uint8)]))
    cameras = [views.orbit(azimuth, 25, 2.6) for azimuth in (10, 35, 100)]
    return cameras, [caster.view(camera, SIZE) for camera in cameras]


def test_depth_puts_every_pixel_on_the_cube_and_background_is_empty(cube):
    for camera, (image, depth) in zip(*cube, strict=True):
        seen = depth > 0
        assert 0.2 < seen.mean() < 0.8
        assert np.abs(places(camera, depth)[seen]).max(-1) == pytest.approx(0.5, abs=1e-5)
        # Where the ray through a pixel's centre meets the box (the slab method).
        towards = rays(camera)
        sides = (np.array([-0.5, 0.5]) - camera[:3, 3, None]) / towards[..., None]
        near, far = np.moveaxis(np.sort(sides), -1, 0)
        enter, leave = near.max(-1), far.min(-1)
        assert (seen == (enter < leave)).mean() > 0.999
        assert depth[seen] == pytest.approx(enter[seen], abs=1e-5)
        around = np.pad(seen, 1)
        lonely = ~np.any([np.roll(around, s, a) for s in (-1, 1) for a in (0, 1)], 0)[1:-1, 1:-1]
        assert (image[lonely & ~seen] == 255).all() and (image[seen].min(-1) < 250).all()


def test_views_agree_on_the_place_and_the_color_of_what_both_see(cube):
    (one, other, *_), (seen_by_one, seen_by_other, *_) = cube
    image, depth = seen_by_one
    column, row, expected = projected(other, places(one, depth))
    column, row = column.round().astype(int), row.round().astype(int)
    inside = (depth > 0) & (column >= 0) & (column < SIZE) & (row >= 0) & (row < SIZE)
    there = seen_by_other[1][row[inside], column[inside]]
    # A pixel's width of surface changes its depth by less than 0.05 in these views.
    both = np.abs(there - expected[inside]) < 0.05
    assert both.sum() > 300
    colors = seen_by_other[0][row[inside], column[inside]].astype(int)
    off = np.abs(colors - image[inside].astype(int))[both].max(-1)
    assert np.median(off) <= 4 and np.quantile(off, 0.9) <= 12  # half a pixel of the texture


def facing(distance, half=1.0):
    """A square across the optical axis of a camera in front, facing it."""
    x, z = (SQUARE - 0.5).T * 2 * half
    return np.stack([x, np.full(4, distance - 2.0), z], axis=1)


def test_a_flat_square_shows_its_texture_evenly_lit():
    pytest.importorskip("embreex", reason=RENDERS)
    y, x = np.mgrid[:128, :128] / 127
    image = np.stack([80 + 160 * x, 80 + 160 * y, 99 + 0 * x, np.full_like(x, 255)], -1)
    camera = views.orbit(0, 0, 2)
    caster = views.Caster(mesh([facing(2.0)], [image.astype(np.uint8)]))
    image, depth = caster.view(camera, SIZE)
    assert (depth > 0).all()
    u, v = np.moveaxis(places(camera, depth)[..., [0, 2]] / 2 + 0.5, -1, 0)
    painted = np.stack([80 + 160 * u, 80 + 160 * (1 - v), 99 + 0 * u], -1) / 255
    share = meshes.linear_from_srgb(image / 255) / meshes.linear_from_srgb(painted)
    assert share == pytest.approx(np.median(share), rel=0.12)  # GLOSS adds a little to all
    assert np.ptp(share[..., 2]) < 0.01


def test_glass_is_seen_through_and_depth_is_that_of_what_stands_behind():
    pytest.importorskip("embreex", reason=RENDERS)
    camera = views.orbit(0, 0, 2)
    red, blue = plain(RED), plain((0, 0, 255, 255))
    behind = views.Caster(mesh([facing(2.0)], [red])).view(camera, 8)
    alone = views.Caster(mesh([facing(1.5)], [plain(GLASS)])).view(camera, 8)
    both = views.Caster(mesh([facing(1.5), facing(2.0)], [plain(GLASS), red], [0, 1]))
    front = views.Caster(mesh([facing(1.5), facing(2.0)], [blue, red], [0, 1]))
    assert behind[1] == pytest.approx(2.0) and alone[1] == pytest.approx(0.0)
    image, depth = both.view(camera, 8)
    assert depth == pytest.approx(2.0)
    light = [meshes.linear_from_srgb(image / 255) for image in (image, behind[0], alone[0])]
    # The pane's own light is what it adds to the white that shows through it, 1 - 0.4.
    assert light[0] == pytest.approx(0.6 * light[1] + light[2] - 0.6, abs=0.02)
    assert front.view(camera, 8)[1] == pytest.approx(1.5)


def test_light_is_the_integral_over_the_sky_and_a_roof_takes_it():
    pytest.importorskip("embreex", reason=RENDERS)
    floor = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]]) * 0.5
    roof = floor + [0, 0, 0.05]
    rays_of_a_pixel = np.arange(9)
    place = np.tile(np.float32([0, 0, views.STEP]), (9, 1))
    up = np.tile(np.float32([0, 0, 1]), (9, 1))
    open_sky = views.Caster(mesh([floor], [plain(RED)])).lit(place, up, rays_of_a_pixel).mean()
    sun = views.SUN[2] / np.linalg.norm(views.SUN)
    x = (np.arange(4000) + 0.5) / 4000  # the height of the sky's rings
    sky = (2 * x * (views.HORIZON + views.RISE * x)).mean()
    assert open_sky == pytest.approx(views.KEY * sun + views.DOME * sky, rel=0.01)
    below = views.Caster(mesh([floor, roof], [plain(RED)])).lit(place, up, rays_of_a_pixel).mean()
    assert below == pytest.approx(views.DOME * sky * views.BOUNCED, rel=0.1)


def test_an_obj_file_brings_its_texture_and_its_materials(tmp_path):
    pytest.importorskip("trimesh", reason=RENDERS)
    Image.fromarray(np.array([[RED, (0, 255, 0, 255)]], np.uint8)).save(tmp_path / "paint.png")
    (tmp_path / "m.mtl").write_text(
        "newmtl painted\nKd 1 1 1\nmap_Kd paint.png\nnewmtl pane\nKd 0 0 1\nd 0.4\n"
    )
    (tmp_path / "m.obj").write_text(
        "mtllib m.mtl\nv 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nv 0 0 1\nv 1 0 1\n"
        "vt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\n"
        "usemtl painted\nf 1/1 2/2 3/3 4/4\nusemtl pane\nf 1 2 6 5\n"
    )
    found = meshes.mesh_in(tmp_path / "m.obj", np.eye(3))
    assert len(found.corners) == 4
    wall = np.isclose(found.corners[:, :, 1], found.corners[..., 1].max()).all(1)  # z = 0, behind
    assert wall.sum() == 2
    ends = found.corners[wall][..., 0] + 0.5
    assert found.uv[wall][..., 0] == pytest.approx(ends)
    material = found.material[wall]
    left_and_right = meshes.texels_at(
        found.textures, material, np.array([[0.25, 0.5], [0.75, 0.5]]), np.ones(2)
    )
    assert left_and_right[:, :2].round(1).tolist() == [[1, 0], [0, 1]]
    pane = found.textures.texels[found.textures.first[found.material[~wall], 0]]
    assert pane[:, 3] == pytest.approx(0.4) and pane[:, 2] == pytest.approx(0.4)

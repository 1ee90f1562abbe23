"""Full scenes: what a group shares, what every camera sees, and where keypoints are."""

import dataclasses
import functools

import numpy as np
import pytest

from onediff_jax.data.scenes import basic as scenes
from onediff_jax.data.scenes import figure
from onediff_jax.data.scenes import objects as things
from onediff_jax.data.scenes import placement as full_scenes
from onediff_jax.data.scenes import render as full_render
from onediff_jax.data.scenes.objects import Person, Solid
from onediff_jax.data.scenes.placement import GROUP

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
NUMBER, SIZE = 32, 48


@functools.cache
def drawn():
    return [full_scenes.draw_full_scene(5, "train", i, 4) for i in range(NUMBER)]


@functools.cache
def seen(index, camera=0):
    scene = drawn()[index]
    arrays = scene.cameras[camera].arrays()
    return full_render.render(
        [full_render.Shot(scene.solids(), scene.light.arrays(), arrays)], SIZE
    )[0]


def identity(thing):
    """What must stay with a thing from scene to scene."""
    if isinstance(thing, Person):
        return thing.who
    return thing.shape, thing.color, thing.second, thing.material, thing.half


def test_a_scene_is_a_function_of_seed_split_and_index():
    full_scenes.view.cache_clear()
    assert full_scenes.draw_full_scene(5, "train", 6, 4) == drawn()[6]
    for other in (
        full_scenes.draw_full_scene(5, "validation", 6, 4),
        full_scenes.draw_full_scene(6, "train", 6, 4),
    ):
        assert other.light.ambient != drawn()[6].light.ambient
        assert other.light.sun != drawn()[6].light.sun
        assert not set(other.cameras) & set(drawn()[6].cameras)
        assert not set(other.things) & set(drawn()[6].things)


def test_every_stream_of_random_numbers_is_of_a_seed_a_split_and_a_scene_or_group(monkeypatch):
    keys = []
    monkeypatch.setattr(full_scenes, "stream", lambda *key: keys.append(key) or scenes.stream(*key))
    for index in (9, 13):  # of a figures' and an objects' group
        full_scenes.draw_full_scene(5, "train", index, 1)
        assert {key[1:3] for key in keys} == {(5, "train")}
        assert {key[-1] for key in keys} == {index, index // GROUP}
        keys.clear()


def test_a_group_shares_one_identity_and_no_two_groups_do():
    shared = []
    for first in range(0, NUMBER, GROUP):
        found = [set(map(identity, scene.things)) for scene in drawn()[first : first + GROUP]]
        common = set.intersection(*found)
        assert len(common) == 1
        shared += common
        who = full_scenes.shared_thing(5, "train", first)
        assert common == {identity(who)}
    assert len(set(shared)) == NUMBER // GROUP
    for seed, split in ((5, "validation"), (6, "train")):
        other = {
            identity(full_scenes.shared_thing(seed, split, i)) for i in range(0, NUMBER, GROUP)
        }
        assert not other & set(shared)


def test_no_two_poses_are_the_same():
    poses = [
        full_scenes.shared_thing(5, "train", i).pose for i in range(400) if i // GROUP % 2 == 0
    ]
    assert len({pose.thighs for pose in poses}) == len(poses) == 200
    assert {pose.name for pose in poses} == set(figure.POSES)


def test_groups_alternate_between_figures_and_objects():
    for i, scene in enumerate(drawn()):
        people = [thing for thing in scene.things if isinstance(thing, Person)]
        assert len(people) == (i // GROUP % 2 == 0)
        assert scene.kind == full_scenes.kind_of(i) == ("figures" if people else "objects")


def test_a_groups_scenes_differ_in_pose_ground_sky_and_camera():
    for first in range(0, NUMBER, GROUP):
        scenes_ = drawn()[first : first + GROUP]
        assert len({scene.light.ground for scene in scenes_}) == GROUP
        assert len({scene.light.sky for scene in scenes_}) == GROUP
        assert len({scene.cameras for scene in scenes_}) == GROUP
        poses = {t.pose.name for s in scenes_ for t in s.things if isinstance(t, Person)}
        assert len(poses) in (0, GROUP)


def test_all_shapes_materials_and_counts_occur():
    solids = [t for scene in drawn() for t in scene.things if isinstance(t, Solid)]
    assert {solid.shape for solid in solids} == set(things.SHAPES)
    assert {solid.material for solid in solids} == set(things.MATERIALS)
    assert {len(scene.things) for scene in drawn()} == {1, 2, 3}
    for scene in drawn():
        colors = [thing.color for thing in scene.things]
        assert len(set(colors)) == len(colors)


def test_things_are_seen_well_by_the_first_camera_and_a_little_by_every_other():
    for scene in drawn():
        for camera in scene.cameras:
            view = full_scenes.view(scene, camera, 40)
            for i, outline in enumerate(view.outlines):
                mine = (view.owner == i).sum()
                assert mine > 0.004 * 40**2
                if camera is scene.cameras[0]:
                    assert 0.02 * 40**2 < mine > 0.5 * outline.sum()
        inside = (full_scenes.seen_keypoints(scene)[..., 2] > 0).sum(axis=1)
        assert (inside >= 15).all()


def test_a_figure_that_the_image_cuts_off_is_refused():
    alone = [s for s in drawn() if s.kind == "figures" and len(s.things) == 1]
    accepted = refused = 0
    for scene in alone:
        camera = scene.cameras[0]
        for angle in np.linspace(12, camera.field_of_view, 12):
            closer = dataclasses.replace(camera, field_of_view=float(angle))
            closer = dataclasses.replace(scene, cameras=(closer,))
            inside = np.count_nonzero(full_scenes.seen_keypoints(closer)[0, :, 2])
            judged = full_scenes.judged(closer)
            seen = (
                full_scenes.view(closer, closer.cameras[0], full_scenes.PROBE).owner == 0
            ).mean()
            if 0.03 < seen < 0.49 and inside < 15:
                assert judged is None
                refused += 1
            accepted += judged is not None
    assert refused > 3 and accepted > 3


def test_the_sun_is_behind_the_first_camera_or_beside_it():
    sides = []
    for scene in drawn():
        (right, _, forward), sun = scene.cameras[0].axes(), np.array(scene.light.sun)
        assert np.linalg.norm(sun) == pytest.approx(1) and 0.49 < sun[2] < 0.87
        level = np.linalg.norm(sun[:2]) * np.linalg.norm(forward[:2])
        assert sun[:2] @ forward[:2] / level < 0.15  # at most 1.7 radians from straight behind
        sides.append(sun @ right > 0)
    assert 0.25 < np.mean(sides) < 0.75


def test_most_figures_face_the_first_camera_and_half_of_the_scenes_are_orbits():
    faces, orbits = [], []
    for scene in drawn():
        center = np.mean([thing.center for thing in scene.things], axis=0)
        away = [np.linalg.norm(center - camera.eye) for camera in scene.cameras[1:]]
        orbits.append(np.ptp(away) < 1e-6)
        for thing in scene.things:
            if isinstance(thing, Person):
                toward = np.subtract(scene.cameras[0].eye[:2], thing.spot)
                faces.append(np.cos(np.arctan2(*toward[::-1]) - thing.yaw) > 0)
    assert 0.7 < np.mean(faces) < 1
    assert 0.3 < np.mean(orbits) < 0.7


def test_every_camera_sees_everything_and_no_two_are_alike():
    for i, scene in enumerate(drawn()[:12]):
        assert len(set(scene.cameras)) == 4
        for camera in range(4):
            found = set(np.unique(seen(i, camera).instances)) - {0}
            assert found == set(range(1, len(scene.things) + 1))
    distances = [[np.linalg.norm(c.eye) for c in scene.cameras[1:]] for scene in drawn()]
    assert np.median(np.ptp(distances, axis=1)) > 0.02


def test_places_and_order_agree_with_the_image():
    columns = (np.arange(SIZE) + 0.5) / SIZE
    for i, scene in enumerate(drawn()):
        instances = seen(i).instances
        middles = [
            ((instances == k) * columns).sum() / (instances == k).sum()
            for k in range(1, len(scene.things) + 1)
        ]
        assert middles == sorted(middles)
        places = [scenes.PLACES[int(3 * middle)] for middle in middles]
        assert places == [thing.place for thing in scene.things]


def test_visible_keypoints_lie_on_the_figure_and_hidden_ones_behind_something():
    counts = np.zeros(3)
    for i, scene in enumerate(drawn()):
        people = full_scenes.seen_keypoints(scene)
        numbers = [k for k, thing in enumerate(scene.things, 1) if isinstance(thing, Person)]
        assert people.shape == (len(numbers), 17, 3)
        for person, number in zip(people, numbers, strict=True):
            image = seen(i)
            mask = np.pad(image.instances == number, 1)
            at = scene.things[number - 1].keypoints()
            xy, ahead = full_scenes.projected(scene.cameras[0], at)
            for (x, y, v), exact, depth in zip(person, xy, ahead, strict=True):
                counts[int(v)] += 1
                outside = (exact < 0).any() or (exact >= 1).any()
                assert (v == 0) == outside
                if v == 0:
                    assert x == y == 0
                    continue
                row, column = int(y * SIZE), int(x * SIZE)
                if v == 2:  # on the figure, or a pixel beside it
                    assert mask[row : row + 3, column : column + 3].any()
                else:  # something is nearer
                    near = image.depth[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
                    assert near.min() < depth - 0.05
    assert counts[2] > counts[1] > 20


def test_faces_are_visible_from_the_front_only():
    fronts = backs = 0
    for i, scene in enumerate(drawn()):
        for thing in scene.things:
            if isinstance(thing, Person) and len(scene.things) == 1:
                eye = np.subtract(scene.cameras[0].eye[:2], thing.spot)
                turn = np.arctan2(eye[1], eye[0]) - thing.yaw
                nose = full_scenes.seen_keypoints(scene)[0, 0, 2]
                if np.cos(turn) > 0.5:
                    fronts += 1
                    assert nose == 2, i
                if np.cos(turn) < -0.5:
                    backs += 1
                    assert nose != 2, i
    for yaw, expected in ((0.0, {2}), (np.pi, {1})):  # one figure turned by hand
        scene = next(s for s in drawn() if s.kind == "figures" and len(s.things) == 1)
        person = scene.things[0]
        eye = np.subtract(scene.cameras[0].eye[:2], person.spot)
        bare = dataclasses.replace(person.who, hat="none", hat_color="")
        turned = dataclasses.replace(person, who=bare, yaw=float(np.arctan2(eye[1], eye[0]) + yaw))
        scene = dataclasses.replace(scene, things=(turned,))
        assert set(full_scenes.seen_keypoints(scene)[0, :3, 2]) == expected


def test_left_shoulders_are_on_the_right_of_a_figure_that_faces_us():
    scene = next(s for s in drawn() if s.kind == "figures")
    k, person = next((k, t) for k, t in enumerate(scene.things) if isinstance(t, Person))
    eye = np.subtract(scene.cameras[0].eye[:2], person.spot)
    for turn, sign in ((0.0, 1), (np.pi, -1)):
        facing = dataclasses.replace(person, yaw=float(np.arctan2(*eye[::-1]) + turn))
        xy, _ = full_scenes.projected(scene.cameras[0], facing.keypoints())
        assert np.sign(xy[5, 0] - xy[6, 0]) == sign

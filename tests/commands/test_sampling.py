"""What the `sample` command understands of its options."""

import json
import pathlib

import numpy as np
import pytest
from rigs import angles

from onediff_jax.commands.sample import (
    SampleRequest,
    camera_values,
    cameras_in,
    given_cameras,
    orbit_of,
    prompt_for,
)
from onediff_jax.data.tasks.table import TASKS, bare_prompt
from onediff_jax.errors import InputError
from onediff_jax.ops.cameras import Camera, opengl_from_opencv, orbit_cameras, relative_cameras
from onediff_jax.ops.rays import rays_from_cameras

FILE = pathlib.Path("a.png")


@pytest.mark.parametrize(
    ("asked", "count"),
    [
        (SampleRequest("text2image", {}), 1),
        (SampleRequest("depth2image", {"depth": FILE}), 2),
        (SampleRequest("faceid", {"reference_1": FILE}), 2),
        (SampleRequest("faceid", {"reference_1": FILE, "reference_3": FILE}), 4),
        (SampleRequest("multiview", {"image_0": FILE, "image_2": FILE}), 6),
        (SampleRequest("multiview", {"image_0": FILE}, orbit="0,0 30,10 60,20,2 ?"), 8),
        (SampleRequest("multiview", {}, views=3), 6),
    ],
)
def test_the_number_of_views_follows_from_what_is_given(asked, count):
    assert asked.count == count


@pytest.mark.parametrize("task", TASKS)
def test_a_prompt_without_caption_is_what_examples_without_caption_are_trained_on(task):
    for views in TASKS[task].builder.counts:
        if task == "multiview":
            asked = SampleRequest(task, {}, views=views // 2)
        elif task in ("faceid", "subject_driven"):
            asked = SampleRequest(task, {f"reference_{i}": FILE for i in range(1, views)})
        else:
            asked = SampleRequest(task, {})
        assert asked.count == views
        assert bare_prompt(task, views) == prompt_for(asked)


def test_prompts_get_the_layout_of_their_task():
    two = {"reference_1": FILE, "reference_2": FILE}
    assert prompt_for(SampleRequest("depth2image", {}, "a cat")) == "[[depth2image]] a cat"
    prompt = prompt_for(SampleRequest("faceid", two, "a man"))
    assert prompt == "[[faceid]] [[img0]] a man [[img1]] [[img2]]"
    whole = "[[img0]] a man [[img1]] a boy [[img2]] him"
    assert prompt_for(SampleRequest("faceid", two, whole)) == f"[[faceid]] {whole}"
    thing = SampleRequest("subject_driven", {"reference_1": FILE}, "on a table", item="red cup")
    expected = "[[subject_driven]] <item: red cup> [[img0]] on a table [[img1]]"
    assert prompt_for(thing) == expected
    assert (
        prompt_for(SampleRequest("depth2image", {}, "[[depth2image]] as it is"))
        == "[[depth2image]] as it is"
    )


def test_an_orbit_is_the_users_cameras_in_the_first_ones_world():
    found = orbit_of("0,0 ? 90,0,3", (64, 64))
    assert set(found) == {"ray_0", "ray_2"}
    np.testing.assert_allclose(found["ray_0"].camera_to_world, np.eye(4), atol=1e-12)
    # From 1.5 in front of the origin to 3 on its right: seen from the first, 3 right and 1.5 ahead.
    np.testing.assert_allclose(found["ray_2"].center, [3, 0, 1.5], atol=1e-9)
    assert orbit_of("", (64, 64)) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0,0 left", "--orbit has 'left'"),
        ("0", "--orbit has '0'"),
        ("0,0,1,2", "--orbit has '0,0,1,2'"),
        ("? 0,0", "the first camera is the world"),
        ("0,0,-1", "distance"),
    ],
)
def test_an_orbit_that_makes_no_sense_is_refused(text, message):
    with pytest.raises(InputError, match=message):
        orbit_of(text, (64, 64))


def test_cameras_of_a_file_are_scaled_as_in_training_and_fit_the_size(tmp_path):
    rig = orbit_cameras(np.array([0.0, 40.0]), np.array([0.0, 20.0]), np.full(2, 5.0), (120, 160))
    matrices = opengl_from_opencv(rig.camera_to_world)
    frames = [
        {"file_path": f"{i}.png", "transform_matrix": m.tolist()} for i, m in enumerate(matrices)
    ]
    K = rig.intrinsics[0]
    numbers = dict(w=160, h=120, fl_x=K[0, 0], fl_y=K[1, 1], cx=K[0, 2], cy=K[1, 2])
    file = tmp_path / "transforms.json"
    file.write_text(json.dumps(numbers | {"frames": frames}))
    found, intrinsics = cameras_in(file, (64, 64))
    assert {name: camera.intrinsics.tolist() for name, camera in found.items()} == {
        name: K.tolist() for name, K in intrinsics.items()
    }
    expected = relative_cameras(rig)
    for i in range(2):
        camera = found[f"ray_{i}"]
        np.testing.assert_allclose(camera.rotation, expected.rotation[i], atol=1e-9)
        np.testing.assert_allclose(camera.center, expected.center[i] * 1.7 / 5, atol=1e-6)
        # The middle 120 x 120 pixels are shown at 64 x 64.
        np.testing.assert_allclose(camera.intrinsics[0, 0], K[0, 0] * 64 / 120)
        np.testing.assert_allclose(camera.intrinsics[:2, 2], 32, atol=1e-9)
    assert SampleRequest("multiview", {}, cameras=file).count == 4
    # Without its pose a frame has intrinsics still; the first one must be known.
    del frames[1]["transform_matrix"]
    file.write_text(json.dumps(numbers | {"frames": frames}))
    found, again = cameras_in(file, (64, 64))
    assert set(found) == {"ray_0"} and set(again) == {"ray_0", "ray_1"}
    np.testing.assert_allclose(again["ray_1"], intrinsics["ray_1"])
    file.write_text(json.dumps(numbers | {"frames": frames[::-1]}))
    with pytest.raises(
        InputError, match=r"no transform_matrix in frames\[0\] and one in fr.*\[1\]"
    ):
        cameras_in(file, (64, 64))
    file.write_text(json.dumps(numbers | {"frames": frames[1:]}))
    found, again = cameras_in(file, (64, 64))
    assert not found and set(again) == {"ray_0"}


def test_a_focal_length_is_that_of_all_cameras():
    asked = SampleRequest("multiview", {}, orbit="0,0 ? 90,0", focal=2.0)
    found, intrinsics = given_cameras(asked, (48, 64))
    assert set(found) == {"ray_0", "ray_2"} and set(intrinsics) == {"ray_0", "ray_1", "ray_2"}
    for K in (found["ray_2"].intrinsics, *intrinsics.values()):
        np.testing.assert_allclose(K, [[128, 0, 32], [0, 128, 24], [0, 0, 1]])
    assert given_cameras(SampleRequest("multiview", {}, orbit="0,0 ?"), (48, 64))[1] == {}
    assert set(given_cameras(SampleRequest("multiview", {}, views=2, focal=1.0), (48, 64))[1]) == {
        "ray_0",
        "ray_1",
    }


def test_known_intrinsics_make_recovered_poses_six_times_better():
    """Noise of 0.01 on rays of analytic cameras: 24 views of 96 x 128 pixels, 192 rays each."""
    rng, size = np.random.default_rng(3), (96, 128)
    azimuth, elevation = rng.uniform(-180, 180, 24), rng.uniform(-30, 60, 24)
    rig = relative_cameras(orbit_cameras(azimuth, elevation, rng.uniform(1.3, 2, 24), size))
    rays = rays_from_cameras(rig, size)
    rays = rays + 0.01 * rng.normal(size=rays.shape)
    names = [f"ray_{i}" for i in range(24)]
    views = dict(zip(names, np.float32(rays), strict=True))
    known = dict(zip(names, rig.intrinsics, strict=True))
    errors = []
    for intrinsics in (known, {}):
        values = camera_values(views, 8, intrinsics).values()
        K, poses = (np.array([v[n] for v in values]) for n in ("intrinsics", "camera_to_world"))
        assert np.array_equal(K, rig.intrinsics) == bool(intrinsics)
        errors.append(angles(Camera(K, poses), rig).mean())
    assert errors[0] < 5 * np.degrees(0.01 / np.sqrt(192)) and errors[1] > 6 * errors[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(task="depth2image", given={}, orbit="0,0"), "--orbit is for multiview"),
        (dict(task="text2image", given={}, views=2), "--views is for multiview"),
        (dict(task="multiview", given={}, orbit="0,0", cameras=FILE), "give one"),
        (dict(task="depth2image", given={}, focal=1.0), "--focal is for multiview"),
        (dict(task="multiview", given={}, focal=1.0, cameras=FILE), "both say focal lengths"),
        (dict(task="multiview", given={}, focal=0.0), "--focal is 0.0; it must be positive"),
        (dict(task="multiview2", given={}), "did you mean 'multiview'"),
    ],
)
def test_options_that_contradict_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        SampleRequest(**options)


def test_a_file_that_is_no_transforms_is_refused(tmp_path):
    (tmp_path / "a.json").write_text("[]")
    for name, message in (
        ("a.json", "expected frames"),
        ("absent.json", "cannot be read: No such"),
    ):
        with pytest.raises(InputError, match=f"^--cameras .*{name}.*{message}"):
            _ = SampleRequest("multiview", {}, cameras=tmp_path / name).count


def test_a_camera_that_is_refused_is_named(tmp_path):
    frames = [{"file_path": "a.png", "transform_matrix": np.eye(4).tolist()}, {"fl_x": 0}]
    (tmp_path / "a.json").write_text(json.dumps(dict(w=8, h=8, fl_x=9, frames=frames)))
    with pytest.raises(
        InputError, match=r"^--cameras .*a.json, frames\[1\] .no file_path.: fl_x is"
    ):
        cameras_in(tmp_path / "a.json", (64, 64))

import json
import math
import pathlib
import pickle

import numpy as np
import pytest
from PIL import Image

from onediff_jax.data.sources.posed import Posed
from onediff_jax.errors import BadRecord, InputError
from onediff_jax.ops.cameras import orbit_cameras

SIZE = (90, 124)  # height and width of the images that the cameras are for
CAMERAS = orbit_cameras(
    np.array([0.0, 40, 80, 120]), np.full(4, 20.0), np.full(4, 2.0), SIZE, focal=0.9
)
FLIP = np.diag([1.0, -1, -1, 1])  # of the camera's axes, between OpenCV and OpenGL


def scene(folder: pathlib.Path, frames: int = 4, **changes) -> dict:
    """A scene in nerfstudio's layout; frame i is of grey i, and its file is not in order."""
    K = CAMERAS.intrinsics[0]
    entries = [
        {"file_path": f"images/frame_{i:03}.png", "transform_matrix": (pose @ FLIP).tolist()}
        for i, pose in enumerate(CAMERAS.camera_to_world[:frames])
    ]
    values = {"camera_model": "OPENCV", "w": SIZE[1], "h": SIZE[0], "k1": 0.01}
    values |= {"fl_x": K[0, 0], "fl_y": K[1, 1], "cx": K[0, 2], "cy": K[1, 2]}
    values |= {"frames": entries[::-1], "applied_transform": np.eye(4)[:3].tolist()} | changes
    for name, divisor in (("images", 1), ("images_4", 4)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(frames):
            size = (round(SIZE[1] / divisor), round(SIZE[0] / divisor))
            Image.new("RGB", size, (i, i, i)).save(folder / name / f"frame_{i:03}.png")
    write(folder, values)
    return values


def write(folder: pathlib.Path, values) -> None:
    text = values if isinstance(values, str) else json.dumps(values)
    (folder / "transforms.json").write_text(text)


def only(folder: pathlib.Path, **settings):
    return Posed(str(folder), **({"validation": 0} | settings)).open("train")


def test_frames_are_in_order_and_cameras_are_those_that_were_written(tmp_path):
    scene(tmp_path / "a")
    source = only(tmp_path)
    assert len(source) == 1 and source.fields == {"image", "frames", "cameras"}
    record = source.read(0, source.fields)
    assert [frame[0, 0, 0] for frame in record["frames"]] == [0, 1, 2, 3]
    assert (record["image"] == record["frames"][0]).all()
    for camera, K, pose in zip(record["cameras"], *CAMERAS, strict=True):
        np.testing.assert_allclose(camera.intrinsics, K)
        np.testing.assert_allclose(camera.camera_to_world, pose, atol=1e-12)


def test_a_camera_sees_a_point_where_opengl_does(tmp_path):
    # OpenGL's camera looks along -z with y up: a point p of the world lies in column
    # cx - fl_x x / z and row cy + fl_y y / z of (x, y, z) = inverse(transform_matrix) p.
    values = scene(tmp_path)
    camera = only(tmp_path)[0]["cameras"][2]
    point = np.array([0.2, -0.1, 0.15, 1])
    entry = next(e for e in values["frames"] if "002" in e["file_path"])
    x, y, z, _ = np.linalg.inv(np.array(entry["transform_matrix"])) @ point
    expected = values["cx"] - values["fl_x"] * x / z, values["cy"] + values["fl_y"] * y / z
    seen = camera.intrinsics @ (np.linalg.inv(camera.camera_to_world) @ point)[:3]
    np.testing.assert_allclose(seen[:2] / seen[2], expected)


def test_smaller_images_have_intrinsics_of_their_true_size(tmp_path):
    scene(tmp_path)
    record = only(tmp_path, pictures="images_4")[0]
    assert record["frames"][1].shape == (22, 31, 3)  # a quarter of 90 is rounded
    expected = CAMERAS.intrinsics[1] * np.array([[31 / 124], [22 / 90], [1]])
    np.testing.assert_allclose(record["cameras"][1].intrinsics, expected)
    np.testing.assert_allclose(record["cameras"][-3].intrinsics, expected)


def test_only_frames_that_are_asked_for_are_read(tmp_path):
    scene(tmp_path)
    for i in (1, 3):
        (tmp_path / "images" / f"frame_{i:03}.png").unlink()
    record = only(tmp_path).read(0, ["frames", "cameras"])
    assert len(record["frames"]) == len(record["cameras"]) == 4
    assert record["frames"][2][0, 0, 0] == 2
    assert record["cameras"][0].intrinsics.shape == (3, 3)
    with pytest.raises(FileNotFoundError, match="frame_003"):
        record["frames"][3]
    with pytest.raises(FileNotFoundError, match="frame_001"):
        record["cameras"][1]


def test_scenes_lie_at_any_depth_and_those_with_few_frames_are_left_out(tmp_path):
    for i, name in enumerate(["1K/a", "1K/b", "2K/deep/c", "d"]):
        scene(tmp_path / name, frames=i + 1)
    for least, names in ((1, "abcd"), (3, "cd"), (4, "d")):
        source = only(tmp_path, least=least)
        assert [source.where(i).split("/")[-2] for i in range(len(source))] == list(names)
        assert source.least == {"frames": least}
        assert all(len(source[i]["frames"]) >= least for i in range(len(source)))
    with pytest.raises(InputError, match="None of the 4 scenes in .* has 5 frames"):
        only(tmp_path, least=5)


def test_scenes_are_held_out_whole(tmp_path):
    for name in "abcdef":
        scene(tmp_path / name, frames=2)
    parts = [Posed(str(tmp_path), validation=2).open(s) for s in ("train", "validation")]
    places = [{source.where(i) for i in range(len(source))} for source in parts]
    assert [len(p) for p in places] == [4, 2] and not places[0] & places[1]


def test_captions_are_of_every_scene_or_refused(tmp_path):
    for name in "ab":
        scene(tmp_path / name, frames=2)
    listing = tmp_path / "metadata.jsonl"
    lines = [json.dumps({"file_name": n, "text": f"scene {n}"}) for n in "ba"]
    listing.write_text("\n".join(lines))
    source = only(tmp_path)
    assert "caption" in source.fields
    for i, name in enumerate("ab"):
        assert source.caption(i) == source.read(i, ["caption"])["caption"] == f"scene {name}"
    several = json.dumps({"file_name": "b", "text": ["scene b", "of two frames"]})
    listing.write_text("\n".join([lines[1], several]))
    assert only(tmp_path).caption(1) == ["scene b", "of two frames"]
    listing.write_text(lines[0])
    with pytest.raises(InputError, match="no caption for 1 scenes, such as 'a'"):
        only(tmp_path)
    listing.write_text("\n".join([*lines, '{"file_name": "c", "text": ""}']))
    with pytest.raises(InputError, match=r"metadata\.jsonl, line 3: expected the name of a scene"):
        only(tmp_path)


def test_blenders_angle_gives_the_focal_length(tmp_path):
    values = scene(tmp_path)
    for name in ("fl_x", "fl_y", "cx", "cy", "w", "h"):
        del values[name]
    for entry in values["frames"]:
        entry["file_path"] = "./" + entry["file_path"].removesuffix(".png")
    write(tmp_path, values | {"camera_angle_x": 2 * math.atan(0.5 / 0.9)})
    record = only(tmp_path)[0]
    assert record["frames"][3][0, 0, 0] == 3
    np.testing.assert_allclose(record["cameras"][3].intrinsics, CAMERAS.intrinsics[3])


def test_intrinsics_may_belong_to_a_frame(tmp_path):
    values = scene(tmp_path)
    values["frames"][0]["fl_x"] = 55.0  # the last file comes first
    write(tmp_path, values)
    cameras = only(tmp_path)[0]["cameras"]
    assert cameras[3].intrinsics[0, 0] == 55 and cameras[2].intrinsics[0, 0] != 55


def test_a_source_travels_to_workers(tmp_path):
    scene(tmp_path)
    source = only(tmp_path)
    source[0]["frames"][1]
    copy = pickle.loads(pickle.dumps(source))
    assert copy.least == source.least and len(copy) == 1
    np.testing.assert_array_equal(copy[0]["cameras"][1][1], source[0]["cameras"][1][1])


NO = "transforms.json: images/frame_001.png"


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"transform_matrix": np.diag([1.0, 1, -1, 1]).tolist()}, "left-handed"),
        ({"fl_x": 0}, "fl_x is 0; it must be a number of pixels above 0"),
        ({"w": 64}, r"the image is 90 x 124; by its cameras it is a resized 90 x 64"),
    ],
)
def test_a_wrong_camera_is_a_fault_of_its_frame_alone(tmp_path, changes, match):
    values = scene(tmp_path)
    values["frames"][2] |= changes
    write(tmp_path, values)
    cameras = only(tmp_path).read(0, ["cameras"])["cameras"]
    assert cameras[0].intrinsics.shape == cameras[2].intrinsics.shape == (3, 3)
    with pytest.raises(BadRecord, match=f"{NO}: .*{match}") as fault:
        cameras[1]
    assert "\n" not in str(fault.value)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('{"frames" oops "transform_matrix" "transform_matrix"', "expected frames, each with"),
        ('{"n": ["transform_matrix", "transform_matrix"]}', "expected frames"),
        (
            '{"frames": [{"transform_matrix": 0}, {"transform_matrix": 0}]}',
            r"frames\[0\].file_path",
        ),
        (
            '{"transform_matrix": 0, "frames": [{"file_path": ".", "transform_matrix": 0}]}',
            "is '.'",
        ),
    ],
)
def test_a_wrong_file_of_cameras_is_a_fault_when_it_is_read(tmp_path, text, match):
    write(tmp_path, text)
    source = only(tmp_path)
    with pytest.raises(BadRecord, match=rf"transforms\.json: .*{match}") as fault:
        source.read(0, source.fields)
    assert "\n" not in str(fault.value)


def test_depth_is_in_the_cameras_unit_and_infinite_where_nothing_is(tmp_path):
    values = scene(tmp_path)
    levels = np.zeros(SIZE, np.uint16)
    levels[3, 5], levels[7, 9] = 1000, 65535
    Image.fromarray(levels).save(tmp_path / "depth.png")
    values["frames"][-1]["depth_file_path"] = "depth.png"  # of frame 0
    for unit, expected in ((None, 1.0), (2e-4, 0.2)):
        write(tmp_path, values | ({"depth_unit_scale_factor": unit} if unit else {}))
        source = only(tmp_path, depth=True)
        depth = source.read(0, ["image", "depth"])["depth"]
        assert depth.shape == SIZE and np.isfinite(depth).sum() == 2
        np.testing.assert_allclose([depth[3, 5], depth[7, 9]], [expected, 65.535 * expected])
    assert "depth" in source.fields and "depth" not in only(tmp_path).fields
    assert "depth" not in only(tmp_path)[0]


@pytest.mark.parametrize(
    ("name", "unit", "match"),
    [
        (None, 1e-3, "depth_file_path is None; it must name a file, or the source's depth"),
        ("images/frame_000.png", 1e-3, "holds uint8 of shape .90, 124, 3.; depth is a grey PNG"),
        ("transforms.json", 1e-3, "transforms.json cannot be read"),
        ("images/frame_000.png", -1, "depth_unit_scale_factor is -1"),
        ("small.png", 1e-3, r"depth has the shape \(2, 2\); it must be \(90, 124\)"),
    ],
)
def test_wrong_depth_is_a_fault(tmp_path, name, unit, match):
    values = scene(tmp_path, depth_unit_scale_factor=unit)
    Image.fromarray(np.ones((2, 2), np.uint16)).save(tmp_path / "small.png")
    if name:
        values["frames"][-1]["depth_file_path"] = name
        write(tmp_path, values)
    with pytest.raises(BadRecord, match=match) as fault:
        only(tmp_path, depth=True).read(0, ["image", "depth"])
    assert "\n" not in str(fault.value)


def test_missing_depth_is_an_error_of_reading(tmp_path):
    values = scene(tmp_path)
    values["frames"][-1]["depth_file_path"] = "none.png"
    write(tmp_path, values)
    with pytest.raises(FileNotFoundError, match="none.png"):
        only(tmp_path, depth=True).read(0, ["depth"])


def test_a_folder_without_scenes_is_refused(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(InputError, match=r"has no transforms\.json"):
        only(tmp_path)

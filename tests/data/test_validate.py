import numpy as np
import pytest

from onediff_jax.data.validate import refuse_wrong, refuse_wrong_camera
from onediff_jax.errors import BadRecord
from onediff_jax.ops.cameras import Camera

PICTURE = np.zeros((6, 8, 3), np.uint8)
KEYPOINTS = np.tile(np.array([3.0, 2.0, 2.0], np.float32), (2, 17, 1))
CAMERA = Camera(np.diag([9.0, 9.0, 1.0]), np.eye(4))
WHOLE = {
    "image": PICTURE,
    "caption": "",
    "instruction": "dye it",
    "item": "a vase",
    "pictures": {"small": PICTURE[:3, :4], "canny": PICTURE},
    "depth": np.array([[1.0, np.inf]] * 3, np.float32).repeat(4, 1).repeat(2, 0),
    "instances": np.array([[0, 2]] * 3, np.uint8).repeat(4, 1).repeat(2, 0),
    "names": ("cat", "dog"),
    "colors": ("red", "blue"),
    "places": ("left", "right"),
    "boxes": np.array([[0, 0, 8, 6], [-2, 1, 3, 9]], np.float32),
    "keypoints": KEYPOINTS,
    "references": [PICTURE],
    "reference_captions": [""],
    "frames": [PICTURE] * 2,
    "cameras": [CAMERA] * 2,
}


def changed(array, place, value):
    array = array.copy()
    array[place] = value
    return array


@pytest.mark.parametrize("caption", [["a cat", ""], ("a cat", "a dog")])
def test_a_caption_may_be_several(caption):
    refuse_wrong(WHOLE | {"caption": caption, "reference_captions": [caption]}, "here")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"caption": ["a", 3]}, r"here: caption\[1\] is 3; it must be a text"),
        ({"caption": []}, r"here: caption is \[\]; it must be a text"),
        ({"reference_captions": [["a", None]]}, r"here: reference_captions\[0\]\[1\] is None"),
        ({"instruction": ["dye it"]}, r"here: instruction is \['dye it'\]"),
    ],
)
def test_several_captions_that_are_none_are_a_fault(changes, match):
    with pytest.raises(BadRecord, match=match):
        refuse_wrong(WHOLE | changes, "here")


def test_a_whole_record_passes_and_so_does_every_part_of_it():
    refuse_wrong(WHOLE, "here")
    for name in WHOLE:
        refuse_wrong({"image": PICTURE, name: WHOLE[name]}, "here")


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("caption", None, "caption is None"),
        ("caption", b"bytes", "caption is b'bytes'"),
        ("instruction", " ", "instruction is ' '"),
        ("item", "", "item is ''"),
        ("reference_captions", [3], r"reference_captions\[0\] is 3"),
        ("reference_captions", [], "reference_captions holds 0 and references 1"),
        ("names", ("cat", ""), r"names\[1\] is ''"),
        ("names", ("cat",), "colors holds 2 and names 1"),
        ("colors", ("red", 7), r"colors\[1\] is 7"),
        ("colors", ("red",), "colors holds 1 and names 2"),
        ("places", ("left",) * 3, "places holds 3"),
        ("boxes", WHOLE["boxes"][:1], "boxes holds 1 and names 2"),
        ("cameras", [CAMERA], "cameras holds 1 and frames 2"),
        ("cameras", [CAMERA._replace(intrinsics=np.eye(3) - 1)] * 2, r"cameras\[0\]: focal"),
        ("pictures", {"hed": PICTURE[:, :4]}, r"pictures\.hed is 6 x 4; .* which is 6 x 8"),
        ("depth", WHOLE["depth"].T, r"depth has the shape \(8, 6\); it must be \(6, 8\)"),
        ("depth", changed(WHOLE["depth"], (1, 1), np.nan), "depth is nan in 1 pixels"),
        ("depth", -WHOLE["depth"], "depth is -1.0 in 48 pixels"),
        ("instances", WHOLE["instances"][:3], r"instances has the shape \(3, 8\)"),
        (
            "instances",
            WHOLE["instances"] + np.uint8(1),
            "instances has numbers from 1 to 3; the names are 2",
        ),
        ("instances", WHOLE["instances"] / 2, "instances holds float64"),
        ("instances", WHOLE["instances"].astype(int) - 1, "instances has numbers from -1 to 1"),
        ("boxes", WHOLE["boxes"][:, :3], r"boxes has the shape \(2, 3\)"),
        ("boxes", changed(WHOLE["boxes"], (1, 0), 3), r"boxes\[1\] is \[3.0, 1.0, 3.0, 9.0\]"),
        ("boxes", WHOLE["boxes"] + 8, r"boxes\[0\] is .* 8 x 6 \(width x height\)"),
        ("boxes", changed(WHOLE["boxes"], (0, 3), np.inf), r"boxes\[0\]"),
        ("keypoints", KEYPOINTS[:, :5], r"keypoints has the shape \(2, 5, 3\)"),
        ("keypoints", changed(KEYPOINTS, (0, 0, 2), 0.5), "keypoints must be finite"),
        ("keypoints", changed(KEYPOINTS, (0, 0, 0), np.nan), "keypoints must be finite"),
    ],
)
def test_a_wrong_field_is_a_fault_that_says_where_and_what(field, value, match):
    with pytest.raises(BadRecord, match=f"^file, line 3: {match}") as fault:
        refuse_wrong(WHOLE | {field: value}, "file, line 3")
    assert "\n" not in str(fault.value)


@pytest.mark.parametrize(
    ("camera", "match"),
    [
        (CAMERA._replace(camera_to_world=np.diag([1.0, 1, 0, 1])), "not a rotation .*nant 0"),
        (CAMERA._replace(camera_to_world=np.diag([1.0, 1, -1, 1])), "determinant -1; it is left-h"),
        (CAMERA._replace(camera_to_world=np.diag([2.0, 2, 2, 1])), "not a rotation .*nant 8"),
        (CAMERA._replace(camera_to_world=np.full((4, 4), np.nan)), "not finite"),
        (CAMERA._replace(camera_to_world=np.diag([1.0, 1, 1, 2])), "last row"),
        (CAMERA._replace(intrinsics=np.diag([0.0, 9, 1])), "focal lengths are 0 and 9"),
        (CAMERA._replace(intrinsics=np.diag([np.inf, 9, 1])), "not finite"),
    ],
)
def test_a_wrong_camera_is_a_fault(camera, match):
    refuse_wrong_camera(CAMERA, "there")
    with pytest.raises(BadRecord, match=f"^there: .*{match}"):
        refuse_wrong_camera(camera, "there")

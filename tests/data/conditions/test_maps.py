import itertools
import math

import numpy as np
import pytest
from pycocotools import mask as coco

from onediff_jax.data.conditions import maps
from onediff_jax.data.conditions.maps import COLORS
from onediff_jax.errors import InputError

CLASSES = ("sphere", "box", "cone", "torus", "capsule")


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("unit", [0.001, 1.0, 1000.0])
def test_depth_is_grey_disparity_from_black_far_to_white_near(unit):
    depth = np.array([[1.0, 2.0], [4.0, 1.5]])
    found = maps.depth_image(depth * unit)
    assert found.dtype == np.uint8 and (found == found[..., :1]).all()
    share = (1 / depth - 1 / 4) / (1 - 1 / 4)
    np.testing.assert_array_equal(found[..., 0], np.round(255 * share))
    assert found[0, 0, 0] == 255 and found[1, 0, 0] == 0


def test_nearer_is_never_darker():
    depth = rng().uniform(1, 9, (12, 14))
    order = np.argsort(depth.ravel())
    grey = maps.depth_image(depth)[..., 0].ravel()[order].astype(int)
    assert (np.diff(grey) <= 0).all() and (grey[0], grey[-1]) == (255, 0)


def test_what_is_infinitely_far_is_black():
    depth = np.array([[np.inf, 2.0], [4.0, np.inf]])
    grey = maps.depth_image(depth)[..., 0]
    assert grey.tolist() == [[0, 255], [128, 0]]
    nowhere = np.full((3, 3), np.inf)
    assert (maps.depth_image(nowhere) == 0).all()


def test_a_plane_at_one_depth_is_black():
    assert (maps.depth_image(np.full((3, 4), 2.5)) == 0).all()


def test_there_are_twenty_colors_all_different():
    assert len(COLORS) == len({maps.rgb(color) for color in COLORS}) == 20
    assert maps.rgb("orange") == (255, 165, 0)
    assert (0, 0, 0) not in map(maps.rgb, COLORS)  # the background's


@pytest.mark.parametrize("count", [1, 5, 20])
@pytest.mark.parametrize("fixed", [False, True])
def test_every_class_has_one_color_of_the_list_and_no_two_share_it(count, fixed):
    names = tuple(f"thing {i}" for i in range(count)) * 2
    colors = maps.class_colors(names, None if fixed else rng())
    assert set(colors) == set(names) and set(colors.values()) <= set(COLORS)
    assert len(set(colors.values())) == count


def test_drawn_colors_follow_the_generator_and_reach_the_whole_list():
    found = [maps.class_colors(CLASSES, rng(seed)) for seed in range(300)]
    again = [maps.class_colors(CLASSES, rng(seed)) for seed in range(300)]
    assert found == again
    for name in CLASSES:
        assert {colors[name] for colors in found} == set(COLORS)


def test_a_fixed_color_depends_on_the_class_and_not_on_its_company_or_order():
    alone = {name: maps.class_colors((name,), None)[name] for name in CLASSES}
    assert len(set(alone.values())) == len(CLASSES)  # these five do not collide
    for size in range(1, 6):
        for names in itertools.permutations(CLASSES, size):
            colors = maps.class_colors(names, None)
            assert colors == {name: alone[name] for name in names}


def test_fixed_colors_that_collide_do_not_depend_on_order():
    names = tuple(f"thing {i}" for i in range(15))
    colors = maps.class_colors(names, None)
    assert [maps.class_colors((name,), None)[name] for name in names] != [
        colors[name] for name in names
    ]  # some do collide
    for seed in range(10):
        assert maps.class_colors(tuple(rng(seed).permutation(names).tolist()), None) == colors


def test_more_classes_than_colors_are_refused():
    with pytest.raises(InputError, match="A map of 21 classes .* there are 20"):
        maps.class_colors(tuple(map(str, range(21))), rng())


def test_the_legend_is_written_as_released():
    assert maps.legend({"sphere": "cyan"}, "mask") == "<#00FFFF cyan mask: sphere>"
    assert (
        maps.legend({"cat": "red", "small dog": "darkorange"}, "boundingbox")
        == "<#FF0000 red boundingbox: cat> <#FF8C00 darkorange boundingbox: small dog>"
    )
    assert maps.legend({}, "mask") == ""


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_a_class_map_shows_every_instance_in_its_class_s_color(kind):
    instances = np.array([[0, 1, 2], [3, 3, 0]], kind)
    image = maps.class_map(instances, ("a", "b", "a"), {"a": "red", "b": "navy"})
    black, red, navy = [0, 0, 0], [255, 0, 0], [0, 0, 128]
    assert image.tolist() == [[black, red, navy], [red, red, black]]
    many = np.arange(600, dtype=np.uint16).reshape(20, 30)
    assert (maps.class_map(many, ("a",) * 599, {"a": "red"})[..., 0] == 255).sum() == 599


def box_map(boxes, names=("a",), size=(6, 8)):
    colors = {"a": "red", "b": "lime"}
    return maps.box_map(*size, np.array(boxes, float).reshape(-1, 4), names, colors)


def test_a_box_is_filled_from_left_and_top_up_to_right_and_bottom():
    image = box_map([[2, 1, 5, 4]])
    expected = np.zeros((6, 8), bool)
    expected[1:4, 2:5] = True
    np.testing.assert_array_equal((image == (255, 0, 0)).all(-1), expected)
    assert (image[~expected] == 0).all()
    assert (box_map([], ()) == 0).all()


def test_a_small_box_lies_over_a_large_one_whatever_their_order():
    large, small = [0, 0, 7, 6], [2, 2, 4, 4]
    one = box_map([large, small], ("a", "b"))
    np.testing.assert_array_equal(one, box_map([small, large], ("b", "a")))
    assert (one[2:4, 2:4] == (0, 255, 0)).all() and one[..., 1].astype(bool).sum() == 4


@pytest.mark.parametrize(
    ("box", "rows", "columns"),
    [
        ([2.4, 1.6, 5.4, 3.6], (2, 4), (2, 5)),  # rounded to pixels
        ([3.1, 2.1, 3.2, 2.2], (2, 3), (3, 4)),  # never less than a pixel
        ([7.9, 5.9, 8.0, 6.0], (5, 6), (7, 8)),  # nor beyond the last
        ([-3, -1, 2, 99], (0, 6), (0, 2)),  # cut at the image
    ],
)
def test_a_box_between_pixels_or_reaching_beyond_the_image(box, rows, columns):
    drawn = box_map([box]).any(-1)
    expected = np.zeros((6, 8), bool)
    expected[slice(*rows), slice(*columns)] = True
    np.testing.assert_array_equal(drawn, expected)


def test_boxes_of_instances_are_those_of_coco_and_leave_out_what_cannot_be_seen():
    masks = rng(3).random((5, 9, 13)) < 0.05
    masks[2] = False
    masks[3, 4, 5] = True
    instances = maps.instances_of(masks)
    numbers, boxes = maps.boxes_of(instances)
    assert 3 not in numbers and numbers.tolist() == sorted(set(instances[instances > 0]))
    for number, box in zip(numbers, boxes, strict=True):
        x, y, width, height = coco.toBbox(coco.encode(np.asfortranarray(instances == number)))
        assert box.tolist() == [x, y, x + width, y + height]
    nothing = maps.boxes_of(np.zeros((3, 3), np.uint8))
    assert nothing[0].shape == (0,) and nothing[1].shape == (0, 4)


def test_a_small_mask_lies_over_a_large_one():
    masks = np.zeros((3, 4, 5), bool)
    masks[0, 1:3, 1:3], masks[1], masks[2, 0, 0] = True, True, True
    found = maps.instances_of(masks)
    assert found.dtype == np.uint16
    assert found.tolist() == [[3, 2, 2, 2, 2], [2, 1, 1, 2, 2], [2, 1, 1, 2, 2], [2] * 5]


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
@pytest.mark.parametrize("size", [(1, 1), (5, 9), (40, 31)])
def test_runs_compressed_or_not_are_the_masks_that_coco_encoded(size, share):
    mask = rng(1).random(size) < share
    runs = coco.encode(np.asfortranarray(mask))
    for counts in (runs["counts"], runs["counts"].decode()):
        found = maps.mask_of({"size": list(size), "counts": counts}, *size)
        assert found.dtype == bool
        np.testing.assert_array_equal(found, mask)
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(flat, prepend=False))
    lengths = np.diff([0, *changes, flat.size]).tolist()
    np.testing.assert_array_equal(maps.mask_of({"size": size, "counts": lengths}, *size), mask)


def test_polygons_have_the_area_of_geometry_and_are_united():
    square = [10.0, 10.0, 30.0, 10.0, 30.0, 40.0, 10.0, 40.0]
    inside = maps.mask_of([square], 60, 50)
    assert inside.sum() == 20 * 30 and inside[10:40, 10:30].all()
    angles = np.linspace(0, math.tau, 90, endpoint=False)
    circle = (np.stack([25 + 20 * np.cos(angles), 30 + 20 * np.sin(angles)], -1)).ravel().tolist()
    assert maps.mask_of([circle], 60, 50).sum() == pytest.approx(math.pi * 400, rel=0.02)
    triangle = [0.0, 0.0, 40.0, 0.0, 0.0, 60.0]
    assert maps.mask_of([triangle], 60, 50).sum() == pytest.approx(40 * 60 / 2, rel=0.03)
    both = maps.mask_of([square, triangle], 60, 50)
    np.testing.assert_array_equal(both, inside | maps.mask_of([triangle], 60, 50))


@pytest.mark.parametrize(
    "segmentation",
    [
        [],
        [[]],
        [[1.0, 2.0, 3.0, 4.0]],
        [[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]],
        [[1.0, 2.0, np.nan, 4.0, 5.0, 6.0]],
        [[1.0, 2.0, 1e15, 4.0, 5.0, 6.0]],
        ["abc"],
        [3, 4],
        {"size": [4, 5]},
        {"counts": [20]},
        {"size": [5, 4], "counts": [20]},  # the other way round
        {"size": [4, 5], "counts": [19]},
        {"size": [4, 5], "counts": [21, -1]},
        {"size": [4, 5], "counts": [20, 10**13]},
        {"size": [4, 5], "counts": ["a"]},
        {"size": [4, 5], "counts": b"zzz"},
        {"size": [4, 5], "counts": ""},
        {"size": [4, 5], "counts": "d\u00e9"},
        {"size": 20, "counts": [20]},
    ],
)
def test_a_segmentation_that_does_not_fit_is_refused_in_one_line(segmentation):
    with pytest.raises(InputError, match="image of height 4 and width 5: ") as refused:
        maps.mask_of(segmentation, 4, 5)
    assert "\n" not in str(refused.value)

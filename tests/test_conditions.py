import itertools

import numpy as np
import pytest

from onediff_jax.data import conditions
from onediff_jax.data.conditions import COLORS, ConditionConfig
from onediff_jax.errors import InputError

DRAWN, FIXED = ConditionConfig("drawn"), ConditionConfig("fixed")
CLASSES = ("sphere", "box", "cone", "torus", "capsule")


def record(names: tuple[str, ...] = ("sphere", "box", "sphere")) -> dict:
    """Instances 1, 2, ... as stripes with background between them."""
    rng = np.random.default_rng(0)
    instances = np.zeros((12, 4 * len(names) + 2), np.uint8)
    for i in range(len(names)):
        instances[2:9, 4 * i + 1 : 4 * i + 4] = i + 1
    image = rng.integers(1, 256, (*instances.shape, 3), dtype=np.uint8)
    depth = rng.uniform(1, 9, instances.shape)
    return {"image": image, "depth": depth, "instances": instances, "names": names}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("unit", [0.001, 1.0, 1000.0])
def test_depth_is_grey_disparity_from_black_far_to_white_near(unit):
    depth = np.array([[1.0, 2.0], [4.0, 1.5]])
    found = conditions.depth_picture(depth * unit)
    assert found.dtype == np.uint8 and (found == found[..., :1]).all()
    share = (1 / depth - 1 / 4) / (1 - 1 / 4)
    np.testing.assert_array_equal(found[..., 0], np.round(255 * share))
    assert found[0, 0, 0] == 255 and found[1, 0, 0] == 0


def test_nearer_is_never_darker():
    depth = record()["depth"]
    order = np.argsort(depth.ravel())
    grey = conditions.depth_picture(depth)[..., 0].ravel()[order].astype(int)
    assert (np.diff(grey) <= 0).all() and (grey[0], grey[-1]) == (255, 0)


def test_what_is_infinitely_far_is_black():
    depth = np.array([[np.inf, 2.0], [4.0, np.inf]])
    grey = conditions.depth_picture(depth)[..., 0]
    assert grey.tolist() == [[0, 255], [128, 0]]
    nowhere = np.full((3, 3), np.inf)
    assert (conditions.depth_picture(nowhere) == 0).all()


def test_a_plane_at_one_depth_is_one_grey():
    assert np.ptp(conditions.depth_picture(np.full((3, 4), 2.5))) == 0


def test_there_are_twenty_colours_all_different():
    assert len(COLORS) == len({conditions.rgb(color) for color in COLORS}) == 20
    assert conditions.rgb("orange") == (255, 165, 0)
    assert (0, 0, 0) not in map(conditions.rgb, COLORS)  # the background's


@pytest.mark.parametrize("count", [1, 5, 20])
@pytest.mark.parametrize("fixed", [False, True])
def test_every_class_has_one_colour_of_the_list_and_no_two_share_it(count, fixed):
    names = tuple(f"thing {i}" for i in range(count)) * 2
    colors = conditions.class_colors(names, None if fixed else rng())
    assert set(colors) == set(names) and set(colors.values()) <= set(COLORS)
    assert len(set(colors.values())) == count


def test_drawn_colours_follow_the_generator_and_reach_the_whole_list():
    found = [conditions.class_colors(CLASSES, rng(seed)) for seed in range(300)]
    again = [conditions.class_colors(CLASSES, rng(seed)) for seed in range(300)]
    assert found == again
    for name in CLASSES:
        assert {colors[name] for colors in found} == set(COLORS)


def test_a_fixed_colour_depends_on_the_class_and_not_on_its_company_or_order():
    alone = {name: conditions.class_colors((name,), None)[name] for name in CLASSES}
    assert len(set(alone.values())) == len(CLASSES)  # these five do not collide
    for size in range(1, 6):
        for names in itertools.permutations(CLASSES, size):
            colors = conditions.class_colors(names, None)
            assert colors == {name: alone[name] for name in names}


def test_fixed_colours_that_collide_do_not_depend_on_order():
    names = tuple(f"thing {i}" for i in range(15))
    colors = conditions.class_colors(names, None)
    assert [conditions.class_colors((name,), None)[name] for name in names] != [
        colors[name] for name in names
    ]  # some do collide
    for seed in range(10):
        assert conditions.class_colors(tuple(rng(seed).permutation(names).tolist()), None) == colors


def test_more_classes_than_colours_are_refused():
    with pytest.raises(InputError, match="A map of 21 classes .* there are 20"):
        conditions.class_colors(tuple(map(str, range(21))), rng())


def test_the_legend_is_written_as_released():
    assert conditions.mask_words({"sphere": "cyan"}) == "<#00FFFF cyan mask: sphere>"
    assert (
        conditions.mask_words({"cat": "red", "small dog": "darkorange"})
        == "<#FF0000 red mask: cat> <#FF8C00 darkorange mask: small dog>"
    )
    assert conditions.mask_words({}) == ""


@pytest.mark.parametrize("config", [DRAWN, FIXED])
@pytest.mark.parametrize("names", [(), ("box",), ("sphere", "box", "sphere"), CLASSES])
def test_the_map_shows_every_instance_in_the_colour_that_the_legend_names(config, names):
    given = record(names)
    picture, words = conditions.semantic(given, rng(), config)
    legend = {}
    for entry in filter(None, words.removesuffix(">").split("> ")):
        code, name = entry.split(" mask: ")
        color, called = code.removeprefix("<#").split(" ")
        assert COLORS[called] == color
        legend[name] = tuple(bytes.fromhex(color))
    assert set(legend) == set(names)
    assert words.count("<#") == len(set(names))  # once for a class, however many instances
    for number, name in enumerate(names, start=1):
        assert (picture[given["instances"] == number] == legend[name]).all()
    assert (picture[given["instances"] == 0] == 0).all()


def test_map_colours_are_drawn_or_fixed_as_set():
    assert len({conditions.semantic(record(), rng(seed), DRAWN).words for seed in range(9)}) > 4
    assert len({conditions.semantic(record(), rng(seed), FIXED).words for seed in range(9)}) == 1
    with pytest.raises(InputError, match="map_colors is 'random'; it can be 'drawn' or 'fixed'"):
        ConditionConfig("random")


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 5), (16, 40), (64, 64)])
def test_a_hole_is_one_rectangle_of_a_quarter_to_three_quarters_of_each_side(height, width):
    seen = np.zeros((height, width), bool)
    for seed in range(400):
        inside = conditions.hole(height, width, rng(seed))
        assert inside.shape == (height, width)
        seen |= inside
        for axis, full in ((1, height), (0, width)):
            marked = np.flatnonzero(inside.any(axis))
            assert marked.size and np.ptp(marked) + 1 == marked.size
            assert max(1, 0.25 * full - 0.5) <= marked.size <= max(1, 0.75 * full + 0.5)
        assert inside.sum() == inside.any(0).sum() * inside.any(1).sum()
    assert seen.any(0).all() and seen.any(1).all()  # it may touch every edge


def test_hole_sides_reach_both_bounds():
    sides = [conditions.hole(40, 64, rng(seed)).any(1).sum() for seed in range(400)]
    assert min(sides) <= 11 and max(sides) >= 29


def test_a_masked_picture_is_black_in_the_hole_and_itself_elsewhere():
    image = record()["image"]  # which has no black
    picture, words = conditions.masked(record(), rng(3), DRAWN)
    black = (picture == 0).all(-1)
    np.testing.assert_array_equal(black, conditions.hole(*image.shape[:2], rng(3)))
    np.testing.assert_array_equal(picture[~black], image[~black])
    assert words == "" and black.any() and picture.dtype == np.uint8


def test_conditions_leave_the_record_alone():
    given, same = record(), record()
    for make in (conditions.depth, conditions.semantic, conditions.masked):
        make(given, rng(), DRAWN)
    for name, value in same.items():
        np.testing.assert_array_equal(given[name], value)

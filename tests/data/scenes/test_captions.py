"""Captions are true of the first image."""

import dataclasses
import functools
import re

import numpy as np
import pytest

from onediff_jax.data.scenes import captions, placement, render
from onediff_jax.data.scenes.objects import NAMED_COLORS, Person, noun
from onediff_jax.data.scenes.worlds import WORLDS

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
FULL = WORLDS["full"]
NUMBER, SIZE = 40, 64


@functools.cache
def drawn():
    return [placement.draw_scene(FULL, 9, "train", i, 1) for i in range(NUMBER)]


@functools.cache
def seen(index):
    scene = drawn()[index]
    camera = scene.cameras[0]
    return render.render([render.Shot(scene.solids(), scene.light, camera)], SIZE)[0]


def sentences(index):
    return captions.long_caption(drawn()[index], index).split(". ")


def object_called(scene, words):
    [(place, item)] = [(i, t) for i, t in enumerate(scene.objects, 1) if noun(t) in words]
    return place, item


def place_seen(instances, number):
    columns = np.nonzero(instances == number)[1]
    return placement.PLACES[int(3 * (columns.mean() + 0.5) / SIZE)]


def test_short_captions_name_everything_from_left_to_right_and_where_it_is():
    words = {word: name for name in placement.PLACES for word in captions.WORDS[name]}
    places = "|".join(sorted(words, key=len, reverse=True))
    for i, scene in enumerate(drawn()):
        for seed in range(4):
            text = captions.caption(scene, seed)
            assert text == captions.caption(scene, seed)
            assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", text)
            found = re.findall(rf"an? ((?:\w+ )*?\w+) ({places})", text)
            names = [f"{item.size} {noun(item)}".strip() for item in scene.objects]
            assert [name for name, _ in found] == names
            for number, (_, place) in enumerate(found, 1):
                assert words[place] == place_seen(seen(i).instances, number)


def test_long_captions_say_more_and_are_functions_of_the_seed():
    for i, scene in enumerate(drawn()):
        text = captions.long_caption(scene, i)
        assert text == captions.long_caption(scene, i)
        assert len(captions.caption(scene, i).split()) + 8 < len(text.split()) < 130
        assert text.endswith(".") and ".." not in text and "  " not in text
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", text)


def test_relations_are_true_of_depth_and_masks():
    said = set()
    for i, scene in enumerate(drawn()):
        image = seen(i)
        for sentence in sentences(i):
            kinds = "to the left of|in front of|behind"
            found = re.fullmatch(rf"The (.+?) is ({kinds})(.*) the (.+)", sentence)
            if not found:
                continue
            a, b = (object_called(scene, found[k])[0] for k in (1, 4))
            assert b == a + 1
            columns = [np.nonzero(image.instances == k)[1] for k in (a, b)]
            assert columns[0].mean() < columns[1].mean()
            depths = [np.median(image.depth[image.instances == k]) for k in (a, b)]
            said.add((found[2], found[3].strip()))
            if found[2] == "in front of" or "nearer" in found[3]:
                assert depths[0] < depths[1]
            if found[2] == "behind" or "farther" in found[3]:
                assert depths[0] > depths[1]
            if found[2] != "to the left of":
                assert columns[0].max() > columns[1].min() - 3
    assert len(said) >= 4


def hue_near(color, pixels):
    """The share of pixels whose direction from grey is a color's."""
    target = np.array(NAMED_COLORS[color])
    if np.ptp(target) < 0.2:
        return 1.0
    flat = pixels - pixels.mean(axis=-1, keepdims=True)
    target = target - target.mean()
    cosine = flat @ target / (np.linalg.norm(flat, axis=-1) * np.linalg.norm(target) + 1e-9)
    return (cosine > 0.9).mean()


def test_colors_that_are_named_are_there():
    for i, scene in enumerate(drawn()):
        for number, item in enumerate(scene.objects, 1):
            pixels = seen(i).image[seen(i).instances == number]
            described = sentences(i)[number - 1]
            assert item.color in described
            assert hue_near(item.color, pixels) > (0.03 if isinstance(item, Person) else 0.2)
            if isinstance(item, Person):
                assert item.who.trousers in described and item.pose.name in described
                hat = f"{item.who.hat_color} {item.who.hat}"
                assert (hat in described) == (item.who.hat != "none")
                assert ("shorts" in described) == item.who.shorts
            elif item.second:
                pattern = {"striped": "stripes", "checkered": "checks"}[noun(item).split()[0]]
                assert f"with {item.second} {pattern}," in described


def test_the_side_of_a_figure_is_the_side_that_the_camera_is_on():
    said = set()
    for i, scene in enumerate(drawn()):
        for item in scene.objects:
            if not isinstance(item, Person):
                continue
            side = captions.facing(item, scene)
            assert f"seen {side}" in captions.long_caption(scene, i)
            said.add(side)
            at, xy = item.keypoints(), None
            eye = np.array(scene.cameras[0].eye)
            near = {name: np.linalg.norm(at[k] - eye) for k, name in ((5, "left"), (6, "right"))}
            xy, _ = scene.cameras[0].project(at)
            if side == "from the front":
                assert xy[5, 0] > xy[6, 0]  # its left is on our right
                assert np.linalg.norm(at[0] - eye) < np.linalg.norm(at[3:5] - eye, axis=1).min()
            if side == "from behind":
                assert xy[5, 0] < xy[6, 0]
            if side == "from its left side":
                assert near["left"] < near["right"]
            if side == "from its right side":
                assert near["left"] > near["right"]
    assert len(said) >= 3


def test_ground_sky_and_sun_are_the_images():
    sides, skies = set(), set()
    for i, scene in enumerate(drawn()):
        last = sentences(i)[-1]
        assert f"The ground is {scene.ground}" in last
        sky = seen(i).depth[0, SIZE // 2] == render.FAR
        empty = seen(i).instances[0, SIZE // 2] == 0
        above = seen(i).depth[15, SIZE // 2] == render.FAR  # ground ends below this row
        if empty:
            assert above <= (scene.sky in last) <= sky
        assert scene.sky in last or "sky" not in last
        right, _, forward = np.array(scene.cameras[0].axes()) @ scene.light.sun
        behind = forward < 0 and abs(forward) > abs(right)
        side = "behind the camera" if behind else "the right" if right > 0 else "the left"
        assert last.endswith(f"the sun shines from {side}.")
        sides.add(side)
        skies.add("sky" in last)
    assert len(sides) == 3 and len(skies) == 2


def test_shadows_fall_away_from_the_side_that_the_sun_is_said_to_be_on():
    agree = total = 0
    for i, scene in enumerate(drawn()):
        side = captions.sun_side(scene)
        if "behind" in side or len(scene.objects) > 1:
            continue
        alone = dataclasses.replace(scene, objects=()).solids()
        shot = render.Shot(alone, scene.light, scene.cameras[0])
        [bare] = render.render([shot], SIZE)
        mine = seen(i).instances == 0
        dark = (bare.image - seen(i).image).mean(axis=-1) * mine
        columns = np.arange(SIZE)
        shadow = (dark.sum(axis=0) * columns).sum() / dark.sum()
        item = np.nonzero(~mine)[1].mean()
        agree += (shadow > item) == (side == "from the left")
        total += 1
    assert total >= 3 and agree >= 0.8 * total

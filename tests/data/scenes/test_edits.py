"""Edits: what the instruction says happens, is visible, and nothing else happens."""

import dataclasses
import functools
import re

import numpy as np
import pytest

from onediff_jax.data.scenes import edits, figure, placement, render
from onediff_jax.data.scenes.captions import WORDS
from onediff_jax.data.scenes.objects import NAMED_COLORS, Person, noun
from onediff_jax.data.scenes.placement import PLACES
from onediff_jax.data.scenes.worlds import WORLDS

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
FULL = WORLDS["full"]
NUMBER, SIZE = 48, 48


@functools.cache
def edited():
    found = []
    for i in range(NUMBER):
        scene = placement.draw_scene(FULL, 7, "train", i, 1)
        found.append((scene, edits.draw_edit(7, "train", i, scene)))
    return found


def of_kind(kind):
    found = [(before, edit) for before, edit in edited() if edit.kind == kind]
    assert found, kind
    return found


@functools.cache
def rendered(scene):
    camera = scene.cameras[0]
    return render.render([render.Shot(scene.solids(), scene.light, camera)], SIZE)[0]


def changed_objects(before, edit):
    """Pairs that differ; the places' names are left out."""
    pairs = zip(before.objects, edit.scene.objects, strict=True)
    return [(a, b) for a, b in pairs if dataclasses.replace(b, place=a.place) != a]


def test_an_edit_is_a_function_of_seed_split_and_index():
    scene, edit = edited()[3]
    assert edits.draw_edit(7, "train", 3, scene) == edit
    assert {edit.kind for _, edit in edited()} == set(edits.EDITS)


def tried(kind, number=6):
    """What an edit of a kind does to every object of every scene, whether it can be seen or not."""
    rng = np.random.default_rng(0)
    for scene, _ in edited():
        for place, item in enumerate(scene.objects):
            for _ in range(number):
                found = edits.EDITS[kind](scene, place, rng)
                if found is not None:
                    yield scene, item, *found, place


def test_new_colors_are_unlike_the_old_one_and_clothes_are_called_what_they_are():
    said = set()
    for scene, old, after, instruction, place in tried("recolor"):
        new, color = after.objects[place], instruction.split()[-1]
        if isinstance(old, Person):
            *_, what, _ = re.split("person's | (?=[a-z]+$)", instruction)
            field = {"shirt": "shirt", "trousers": "trousers", "shorts": "trousers"}
            field = field.get(what, "hat_color")
            was, stripes = getattr(old.who, field), "" if what == "shirt" else old.who.stripes
            assert dataclasses.replace(old.who, **{field: color, "stripes": stripes}) == new.who
            assert what in ("shirt", "shorts" if old.who.shorts else "trousers", old.who.hat)
            said.add(field)
        else:
            was = old.color
        assert np.linalg.norm(np.subtract(NAMED_COLORS[color], NAMED_COLORS[was])) > 0.4
        assert f" {color} " not in f" {' '.join(map(str, looks(scene)))} "
    assert said == {"shirt", "trousers", "hat_color"}


def looks(scene):
    """The colors of all objects and clothes."""
    for item in scene.objects:
        who = item.who if isinstance(item, Person) else item
        names = ("shirt", "trousers", "stripes", "hat_color", "color", "second")
        yield from (getattr(who, name) for name in names if hasattr(who, name))


def test_hats_are_taken_off_or_given():
    said = set()
    for _, old, after, instruction, place in tried("hat"):
        who = after.objects[place].who
        if old.who.hat == "none":
            article = "an" if who.hat_color == "orange" else "a"
            assert instruction == f"give the person {article} {who.hat_color} {who.hat}"
        else:
            assert (instruction, who.hat, who.hat_color) == ("take off the hat", "none", "")
        said.add(who.hat)
    assert said == set(figure.HATS)


def test_objects_change_their_shape_and_size_where_they_stand():
    factors = set()
    for kind in ("reshape", "resize"):
        for _, old, after, instruction, place in tried(kind):
            new = after.objects[place]
            assert new.center == (*old.center[:2], new.half[2])
            if kind == "reshape":
                assert new.shape != old.shape and instruction.endswith(f" into a {new.shape}")
            else:
                [factor] = {round(float(f), 9) for f in np.divide(new.half, old.half)}
                assert instruction.endswith("larger" if factor > 1 else "smaller")
                factors.add((old.size, factor > 1))
    assert len(factors) == 4


def test_scenes_keep_one_to_three_objects_that_do_not_overlap():
    for _, edit in edited():
        assert 1 <= len(edit.scene.objects) <= 3
        for i, a in enumerate(edit.scene.objects):
            for b in edit.scene.objects[:i]:
                gap = np.linalg.norm(np.subtract(a.center[:2], b.center[:2]))
                assert gap > a.extent[0] + b.extent[0]
    counts = {kind: {len(s.objects) for s, *_ in tried(kind, 3)} for kind in ("remove", "add")}
    assert counts == {"remove": {2, 3}, "add": {1, 2}}


def test_at_most_one_object_changes_and_light_and_camera_stay():
    for before, edit in edited():
        for field in ("light", "cameras", "world"):
            assert getattr(before, field) == getattr(edit.scene, field)
        if len(edit.scene.objects) == len(before.objects):
            assert len(changed_objects(before, edit)) == 1
        else:
            assert edit.kind in ("add", "remove")
            pair = sorted((before.objects, edit.scene.objects), key=len)
            same = [dataclasses.replace(t, place="") for t in pair[0]]
            assert set(same) < {dataclasses.replace(t, place="") for t in pair[1]}
            assert len(pair[1]) == len(pair[0]) + 1
            assert len(before.objects) == len(pair[edit.kind == "remove"])


def test_moving_is_to_the_side_that_is_said():
    assert {edit.instruction.split()[-1] for _, edit in of_kind("move")} == {"left", "right"}
    for before, edit in of_kind("move"):
        [(old, new)] = changed_objects(before, edit)
        name, side = re.fullmatch(r"move the (.+) to the (left|right)", edit.instruction).groups()
        assert name == noun(old)
        place = before.objects.index(old)
        columns = (np.arange(SIZE) + 0.5) / SIZE
        middles = []
        for scene in (before, edit.scene):
            alone = dataclasses.replace(scene, objects=(scene.objects[place],))
            mask = rendered(alone).instances == 1
            middles.append((mask * columns).sum() / mask.sum())
        assert (middles[1] - middles[0]) * (1 if side == "right" else -1) > 0.08


def test_removing_and_adding_do_what_they_say():
    for before, edit in of_kind("remove"):
        left = [dataclasses.replace(item, place="") for item in edit.scene.objects]
        [gone] = [t for t in before.objects if dataclasses.replace(t, place="") not in left]
        assert edit.instruction == f"remove the {noun(gone)}"
    for before, edit in of_kind("add"):
        new = edit.scene.objects[-1]
        article = "an" if noun(new)[0] in "aeiou" else "a"
        assert edit.instruction == f"add {article} {noun(new)} {WORDS[new.place][0]}"
        mask = rendered(edit.scene).instances == len(edit.scene.objects)
        middle = (mask * (np.arange(SIZE) + 0.5)).sum() / mask.sum() / SIZE
        assert new.place == PLACES[int(3 * middle)]
        assert new.color not in [item.color for item in before.objects]


def test_what_is_named_is_named_by_one_thing_only():
    for before, edit in edited():
        names = [noun(item) for item in before.objects]
        assert len(set(names)) == len(names)
        if edit.kind not in ("add", "hat"):
            assert sum(name in edit.instruction for name in names) == 1


def test_every_edit_can_be_seen_and_leaves_other_objects_where_they_were():
    for before, edit in edited():
        first, second = rendered(before), rendered(edit.scene)
        assert (np.abs(first.image - second.image).max(axis=-1) > 0.1).mean() > 0.008
        for k in range(1, len(edit.scene.objects) + 1):
            assert (second.instances == k).mean() > 0.018  # still seen well
        numbers = {item: k for k, item in enumerate(before.objects, 1)}
        for k, item in enumerate(edit.scene.objects, 1):
            was = [n for t, n in numbers.items() if dataclasses.replace(item, place=t.place) == t]
            if not was:
                continue
            # An untouched item has the same pixels, but for those that the edited one hides.
            one, other = first.instances == was[0], second.instances == k
            others = first.instances[other & ~one], second.instances[one & ~other]
            assert (others[0] > 0).mean() > 0.9 if others[0].size > 3 else True
            assert (others[1] > 0).mean() > 0.9 if others[1].size > 3 else True
            # Its color keeps its hue: only shadow and highlight may differ.
            both = one & other
            assert np.abs(first.normals[both] - second.normals[both]).max() < 1e-4
            assert np.abs(first.depth[both] - second.depth[both]).max() < 1e-4

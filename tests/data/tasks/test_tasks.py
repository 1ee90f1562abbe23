from collections import Counter

import jax
import numpy as np
import pytest
from tiny import Blobs

from onediff_jax.data.conditions import make as conditions
from onediff_jax.data.conditions.make import ConditionConfig
from onediff_jax.data.conditions.maps import COLORS, class_colors
from onediff_jax.data.tasks.builders import is_ray
from onediff_jax.data.tasks.table import ALIASES, TASKS, example_of, mixtures, prompt_of, task_named
from onediff_jax.errors import InputError

CONFIG = ConditionConfig("fixed")
RELEASED = [
    "text2image",
    "deblurring",
    "image_inpainting",
    "canny2image",
    "depth2image",
    "pose2image",
    "semanticmap2image",
    "boundingbox2image",
    "image_editing",
    "faceid",
    "subject_driven",
    "multiview",
]
RECORD = Blobs()[4]
MADE = [name for name in TASKS if name != "hed2image"]  # without weights, which nobody has here


def example(task: str, record=RECORD, seed: int = 0, views: int | None = None):
    views = views or TASKS[task].builder.counts[0]
    return example_of(task, record, views, lambda shape: shape, np.random.default_rng(seed), CONFIG)


@pytest.mark.parametrize("task", MADE)
def test_of_several_captions_each_example_has_one_drawn_evenly(task):
    several = {"caption": ("one sky", "two skies", "three skies")}
    for name in ("reference_captions", "item_captions"):
        several[name] = [("first", "second")] * 4
    prompts = [example(task, RECORD | several, seed).prompt for seed in range(300)]
    assert prompts[:20] == [example(task, RECORD | several, seed).prompt for seed in range(20)]
    if task == "image_editing":
        return  # its instruction alone
    counts = Counter(text for p in prompts for text in several["caption"] if text in p)
    assert counts.total() == 300 and min(counts.values()) > 70
    if task in ("faceid", "subject_driven"):  # of two views: one reference
        drawn = Counter(prompt.split()[-1] for prompt in prompts)
        assert drawn.keys() == {"first", "second"} and min(drawn.values()) > 110


@pytest.mark.parametrize("task", MADE)
def test_of_one_caption_nothing_is_drawn(task):
    listed = {name: [[text] for text in RECORD[name]] for name in SEVERAL}
    for seed in range(5):
        one, other = (
            example(task, seed=seed),
            example(task, RECORD | {"caption": [RECORD["caption"]]} | listed, seed),
        )
        assert one.prompt == other.prompt and same(one.views, other.views)


SEVERAL = ("reference_captions", "item_captions")


def same(a, b) -> bool:
    return jax.tree.all(jax.tree.map(np.array_equal, a, b))


def test_tokens_are_the_released_ones():
    for task in RELEASED:
        assert TASKS[task].token == f"[[{task}]]"
    assert TASKS["hed2image"].token == "[[hed2img]]"  # the release's spelling
    assert set(TASKS) == {*RELEASED, "hed2image", "super_resolution"}
    assert len({task.token for task in TASKS.values()}) == len(TASKS)


@pytest.mark.parametrize("task", MADE)
def test_a_task_gets_by_with_each_set_of_fields_that_it_names(task):
    row = TASKS[task]
    ready = {f"pictures.{name}" for name in row.builder.names(row.builder.counts[0])}
    for needed in row.needs:
        record = {name: RECORD[name] for name in needed - ready}
        if given := {name.removeprefix("pictures.") for name in needed & ready}:
            record["pictures"] = {name: RECORD["edited"] for name in given}
        drawn = example(task, record)
        assert drawn.task == task and len(drawn.views) == row.builder.counts[0]
        for name in set(record) - {"caption", "pictures"}:
            with pytest.raises((KeyError, InputError)):
                example(task, {field: value for field, value in record.items() if field != name})


@pytest.mark.parametrize("task", MADE)
def test_what_is_taken_of_a_record_is_what_the_task_needs_and_captions(task):
    fields = TASKS[task].takes(Blobs.fields)
    assert any(needed <= fields for needed in TASKS[task].needs)
    drawn, whole = example(task, Blobs().read(4, fields)), example(task)
    assert drawn.prompt == whole.prompt and same(drawn.views, whole.views)
    assert TASKS[task].takes(frozenset({"caption"})) is None


def test_boxes_are_taken_as_given_or_from_the_masks():
    given = example("boundingbox2image")
    record = {name: RECORD[name] for name in ("image", "instances", "names", "caption")}
    assert same(example("boundingbox2image", record).views, given.views)


CONDITIONS = {
    "deblurring": conditions.blurred,
    "image_inpainting": conditions.masked,
    "super_resolution": conditions.low_resolution,
    "canny2image": conditions.canny,
    "depth2image": conditions.depth,
    "pose2image": conditions.pose,
    "semanticmap2image": conditions.semantic,
    "boundingbox2image": conditions.boxes,
}


@pytest.mark.parametrize("task", CONDITIONS)
def test_views_are_the_image_and_the_condition_of_the_same_generator(task):
    target, condition = example(task, seed=5).views
    np.testing.assert_array_equal(target, RECORD["image"])
    expected = CONDITIONS[task](RECORD, np.random.default_rng(5), CONFIG).image
    np.testing.assert_array_equal(condition, expected)
    assert (condition != target).any()


@pytest.mark.parametrize("task", MADE)
def test_an_example_is_a_function_of_the_record_and_the_generator(task):
    views = TASKS[task].builder.counts[-1]
    first, again = (example(task, seed=3, views=views) for _ in range(2))
    assert first.prompt == again.prompt and same(first.views, again.views)
    sizes = {view.shape for view in first.views if isinstance(view, np.ndarray)}
    assert {(*first.size, 3)} == sizes
    names = TASKS[task].builder.names(views)
    assert [is_ray(n) for n in names] == [not isinstance(v, np.ndarray) for v in first.views]


@pytest.mark.parametrize(
    ("task", "prompt"),
    [
        ("text2image", "[[text2image]] {caption}"),
        ("depth2image", "[[depth2image]] {caption}"),
        ("semanticmap2image", "[[semanticmap2image]] <#{hex} {color} mask: box> {caption}"),
        ("boundingbox2image", "[[boundingbox2image]] <#{hex} {color} boundingbox: box> {caption}"),
        ("image_inpainting", "[[image_inpainting]] {caption}"),
        ("multiview", "[[multiview]] {caption}"),
    ],
)
def test_a_prompt_is_the_token_then_the_legend_then_the_caption(task, prompt):
    color = class_colors(("box",), None)["box"]
    parts = {"caption": RECORD["caption"], "color": color, "hex": COLORS[color]}
    assert example(task).prompt == prompt.format(**parts)


def test_a_prompt_leaves_out_what_there_is_not():
    assert prompt_of("depth2image", []) == "[[depth2image]]"
    assert prompt_of("depth2image", ["", "", "a cat"]) == "[[depth2image]] a cat"
    without = {name: value for name, value in RECORD.items() if name != "caption"}
    assert example("image_inpainting", without).prompt == "[[image_inpainting]]"


def test_published_mixtures_give_their_shares():
    found = mixtures()
    for weights in found.values():
        assert sum(weights.values()) == pytest.approx(1) and set(weights) <= set(TASKS)
    pairs = [name for name in found["four"] if TASKS[name].builder.counts == (2,)]
    assert sum(found["four"][name] for name in pairs) == pytest.approx(0.25)
    assert [found["four"][n] for n in ("text2image", "faceid", "multiview")] == [0.25] * 3
    three = found["three"]
    assert three["text2image"] == three["multiview"] == pytest.approx(sum(three[n] for n in pairs))
    assert found["text"] == {"text2image": 1.0}


def test_the_papers_spelling_of_a_task_is_understood():
    assert task_named("semantic2image") is TASKS["semanticmap2image"]
    assert not set(ALIASES) & set(TASKS)


@pytest.mark.parametrize("task", TASKS)
def test_a_task_is_found_by_its_name(task):
    assert task_named(task) is TASKS[task]


@pytest.mark.parametrize(("name", "near"), [("text2img", "text2image"), ("depth", "depth2image")])
def test_an_unknown_task_is_refused_with_the_nearest_name(name, near):
    with pytest.raises(InputError, match=f"no task '{name}'; did you mean '{near}'"):
        task_named(name)


def test_a_task_like_no_other_is_refused_with_all_names():
    with pytest.raises(InputError, match="it can be " + ", ".join(TASKS)):
        task_named("xyzzy")

import numpy as np
import pytest

from onediff_jax.data import conditions
from onediff_jax.data.conditions import ConditionConfig
from onediff_jax.data.tasks import TASKS, example_of, prompt_of, task_named
from onediff_jax.errors import InputError

CONFIG = ConditionConfig("fixed")
RELEASED = ("text2image", "depth2image", "semanticmap2image", "image_inpainting")


def record() -> dict:
    rng = np.random.default_rng(0)
    instances = np.zeros((8, 12), np.uint8)
    instances[2:6, 3:7] = 1
    return {
        "image": rng.integers(1, 256, (8, 12, 3), dtype=np.uint8),
        "depth": rng.uniform(1, 5, (8, 12)),
        "instances": instances,
        "names": ("sphere",),
        "caption": "a red sphere",
    }


@pytest.mark.parametrize("task", RELEASED)
def test_tokens_are_the_released_ones(task):
    assert TASKS[task].token == f"[[{task}]]"


def test_no_two_tasks_share_a_token():
    assert len({task.token for task in TASKS.values()}) == len(TASKS)


@pytest.mark.parametrize("task", TASKS)
def test_the_target_comes_first_and_every_other_view_is_made(task):
    row = TASKS[task]
    assert row.views[0] == "image" and len(set(row.views)) == len(row.views)
    assert set(row.make) == set(row.views) - {"image"}


@pytest.mark.parametrize("task", TASKS)
def test_a_task_gets_by_with_the_fields_it_names(task):
    needed = {name: value for name, value in record().items() if name in TASKS[task].needs}
    example = example_of(task, needed, np.random.default_rng(0), CONFIG)
    assert example.task == task and len(example.views) == len(TASKS[task].views)
    for name in TASKS[task].needs:
        lacking = {field: value for field, value in needed.items() if field != name}
        if name != "caption":  # a prompt may lack its caption
            with pytest.raises(KeyError):
                example_of(task, lacking, np.random.default_rng(0), CONFIG)


def test_views_are_the_picture_and_the_conditions_of_the_same_generator():
    makers = {
        "depth2image": conditions.depth,
        "semanticmap2image": conditions.semantic,
        "image_inpainting": conditions.masked,
    }
    for task, make in makers.items():
        target, condition = example_of(task, record(), np.random.default_rng(5), CONFIG).views
        np.testing.assert_array_equal(target, record()["image"])
        expected = make(record(), np.random.default_rng(5), CONFIG).picture
        np.testing.assert_array_equal(condition, expected)
        assert (condition != target).any()


@pytest.mark.parametrize(
    ("task", "prompt"),
    [
        ("text2image", "[[text2image]] a red sphere"),
        ("depth2image", "[[depth2image]] a red sphere"),
        ("semanticmap2image", "[[semanticmap2image]] <#{} {} mask: sphere> a red sphere"),
        ("image_inpainting", "[[image_inpainting]] a red sphere"),
    ],
)
def test_a_prompt_is_the_token_then_the_legend_then_the_caption(task, prompt):
    color = conditions.class_colors(("sphere",), None)["sphere"]
    example = example_of(task, record(), np.random.default_rng(0), CONFIG)
    assert example.prompt == prompt.format(conditions.COLORS[color], color)


def test_a_prompt_leaves_out_what_there_is_not():
    assert prompt_of("depth2image", [], "") == "[[depth2image]]"
    assert prompt_of("depth2image", ["", ""], "a cat") == "[[depth2image]] a cat"
    assert prompt_of("depth2image", ["one", "two"], "") == "[[depth2image]] one two"
    without = {name: value for name, value in record().items() if name != "caption"}
    example = example_of("image_inpainting", without, np.random.default_rng(0), CONFIG)
    assert example.prompt == "[[image_inpainting]]"


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

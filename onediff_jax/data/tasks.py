"""The tasks: one table, one row each.

A task is learned in all directions at once; sampling chooses one.  Tokens are as released.  A view
named `image` is the record's picture; every other view has a function that makes it.  The target
comes first.
"""

import dataclasses
import difflib
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from onediff_jax.data import conditions
from onediff_jax.data.conditions import Condition, ConditionConfig
from onediff_jax.data.example import Example, Record
from onediff_jax.errors import InputError

Make = Callable[[Record, np.random.Generator, ConditionConfig], Condition]


@dataclasses.dataclass(frozen=True)
class Task:
    """What a task's record must have, its views in order, and how to make all but the picture."""

    token: str
    needs: frozenset[str]
    views: tuple[str, ...]
    make: Mapping[str, Make]


TASKS = {
    "text2image": Task("[[text2image]]", frozenset({"image", "caption"}), ("image",), {}),
    "depth2image": Task(
        "[[depth2image]]",
        frozenset({"image", "depth"}),
        ("image", "depth"),
        {"depth": conditions.depth},
    ),
    "semanticmap2image": Task(
        "[[semanticmap2image]]",
        frozenset({"image", "instances", "names"}),
        ("image", "semantic"),
        {"semantic": conditions.semantic},
    ),
    "image_inpainting": Task(
        "[[image_inpainting]]",
        frozenset({"image"}),
        ("image", "masked"),
        {"masked": conditions.masked},
    ),
}


def task_named(name: str) -> Task:
    """The row of `name`; raises with the nearest name where there is none."""
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"it can be {', '.join(TASKS)}."
        raise InputError(f"There is no task {name!r}; {hint}")
    return TASKS[name]


def prompt_of(task: str, words: Iterable[str], caption: str) -> str:
    """The task's token, what its conditions say, and the caption."""
    return " ".join(part for part in (TASKS[task].token, *words, caption) if part)


def example_of(
    task: str, record: Record, rng: np.random.Generator, config: ConditionConfig
) -> Example:
    """The example that `task` makes of a record (whose fields already have the views' size)."""
    made = {name: make(record, rng, config) for name, make in TASKS[task].make.items()}
    views = tuple(
        made[name].picture if name in made else record[name] for name in TASKS[task].views
    )
    words = [condition.words for condition in made.values()]
    return Example(task, views, prompt_of(task, words, record.get("caption", "")))

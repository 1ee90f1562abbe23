"""The tasks: one table, one row each.

A task is learned in all directions at once; sampling chooses one.  Tokens are as released; none was
published for super-resolution, so that one is ours.  The target comes first.
"""

import dataclasses
import difflib
from collections.abc import Callable, Iterable, Set

import numpy as np

from onediff_jax.data.conditions import make
from onediff_jax.data.conditions.make import ConditionConfig
from onediff_jax.data.example import Caption, Example, Record, texts_of
from onediff_jax.data.tasks.builders import (
    ExampleBuilder,
    Make,
    alone,
    conditioned,
    edited,
    multiview,
    subject,
)
from onediff_jax.data.tasks.fitting import USUAL, Fitting, fit_record
from onediff_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Task:
    """A task's token, the fields that its record must have, and the form of its examples."""

    token: str
    needs: tuple[frozenset[str], ...]  # any one of these sets
    builder: ExampleBuilder

    def takes(self, fields: Set[str]) -> frozenset[str] | None:
        """The first of the needed sets that `fields` hold, and captions; None if there is none."""
        found = next((needed for needed in self.needs if needed <= fields), None)
        return None if found is None else found | (fields & CAPTIONS)


CAPTIONS = {"caption", "item_captions", "reference_captions"}  # taken where there are any


def sets(*alternatives: str) -> tuple[frozenset[str], ...]:
    """Sets of fields, each written as words."""
    return tuple(frozenset(fields.split()) for fields in alternatives)


def condition(token: str, view: str, make: Make, *needs: str) -> Task:
    """A task with one condition, made of the image and of the fields of one of `needs`."""
    made = (f"image {fields}" for fields in needs or ("",))
    return Task(token, sets(f"image pictures.{view}", *made), conditioned(view, make))


TASKS = {
    "text2image": Task("[[text2image]]", sets("image caption"), alone()),
    "deblurring": condition("[[deblurring]]", "blurred", make.blurred),
    "image_inpainting": condition("[[image_inpainting]]", "masked", make.masked),
    "super_resolution": condition("[[super_resolution]]", "small", make.low_resolution),
    "canny2image": condition("[[canny2image]]", "canny", make.canny),
    "depth2image": condition("[[depth2image]]", "depth", make.depth, "depth"),
    "hed2image": condition("[[hed2img]]", "hed", make.hed),
    "pose2image": condition("[[pose2image]]", "pose", make.pose, "keypoints"),
    "semanticmap2image": condition(
        "[[semanticmap2image]]", "semantic", make.semantic, "instances names"
    ),
    "boundingbox2image": condition(
        "[[boundingbox2image]]", "boxes", make.boxes, "boxes names", "instances names"
    ),
    "image_editing": Task("[[image_editing]]", sets("image edited instruction"), edited()),
    "faceid": Task(
        "[[faceid]]", sets("image references"), subject("references", "reference_captions", 4)
    ),
    "subject_driven": Task(
        "[[subject_driven]]",
        sets("image item item_references"),
        subject("item_references", "item_captions", 4, "item"),
    ),
    "multiview": Task("[[multiview]]", sets("frames cameras"), multiview(12)),
}
ALIASES = {"semantic2image": "semanticmap2image", "hed2img": "hed2image"}


def canonical(name: str) -> str:
    """The table's name of a task; raises with the nearest name where there is none."""
    name = ALIASES.get(name, name)
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"it can be {', '.join(TASKS)}."
        raise InputError(f"There is no task {name!r}; {hint}")
    return name


def task_named(name: str) -> Task:
    """The row of `name`."""
    return TASKS[canonical(name)]


def prompt_of(task: str, words: Iterable[str]) -> str:
    """The task's token and what follows it."""
    return " ".join(part for part in (TASKS[task].token, *words) if part)


def bare_prompt(task: str, views: int) -> str:
    """The prompt of an example of so many views that loses its caption.

    It is what `sample` sends where no prompt is given: the task's token and, of subjects, the
    numbers of their images.
    """
    return prompt_of(task, TASKS[task].builder.bare(views))


def with_one_caption(record: Record, rng: np.random.Generator) -> Record:
    """The record with one of its image's captions, and one of each reference's."""

    def drawn(caption: Caption) -> str:
        texts = texts_of(caption)  # of one nothing is drawn: else every example would change
        return texts[int(rng.integers(len(texts)))] if len(texts) > 1 else texts[0]

    found = dict(record)
    if "caption" in found:
        found["caption"] = drawn(found["caption"])
    if "reference_captions" in found:
        found["reference_captions"] = tuple(map(drawn, found["reference_captions"]))
    return found


def example_of(
    task: str,
    record: Record,
    views: int,
    size: Callable[[tuple[int, int]], tuple[int, int]],
    rng: np.random.Generator,
    config: ConditionConfig,
    fitting: Fitting = USUAL,
) -> Example:
    """The example of so many views that `task` makes of a record.

    `size` answers the shape of the first image with the height and width of all views.  Where the
    record has several captions, one is drawn.
    """
    builder = TASKS[task].builder
    taken = with_one_caption(builder.choose(record, views, rng, config), rng)
    first = taken["frames"][0] if "frames" in taken else taken["image"]
    made = builder.make(fit_record(taken, *size(first.shape[:2]), fitting), rng, config)
    return Example(task, made.views, prompt_of(task, made.words))


def mixtures() -> dict[str, dict[str, float]]:
    """The published mixtures, as weights of tasks.

    `four` draws text to image, a condition, a person and several views equally often (paper,
    section 3.3); `three` the first two and several views, persons apart (supplement, section 10;
    their share, a tenth, is ours); `text` images from text alone (stage 1).
    """
    conditioned = [name for name, task in TASKS.items() if task.builder.counts == (2,)]

    def mixture(text: float, person: float, scene: float, pair: float) -> dict[str, float]:
        pairs = {name: pair / len(conditioned) for name in conditioned}
        others = {"text2image": text, "faceid": person, "multiview": scene}
        return {name: weight for name, weight in (others | pairs).items() if weight}

    return {
        "four": mixture(0.25, 0.25, 0.25, 0.25),
        "three": mixture(0.3, 0.1, 0.3, 0.3),
        "text": mixture(1.0, 0.0, 0.0, 0.0),
    }

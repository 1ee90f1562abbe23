"""The built-in scenes as a test: every direction scored on held-out scenes, beside trivial answers.

The first half of the validation scenes is for looking and choosing; scores come from the second.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from onediff_jax.data.conditions import maps
from onediff_jax.data.conditions.make import ConditionConfig
from onediff_jax.data.example import Record
from onediff_jax.data.records import Source
from onediff_jax.data.scenes.objects import PALETTE
from onediff_jax.data.scenes.render import FAR
from onediff_jax.data.scenes.worlds import WORLDS
from onediff_jax.data.tasks.fitting import fit_record
from onediff_jax.data.tasks.table import TASKS
from onediff_jax.evaluate import scores
from onediff_jax.evaluate.held_out import CompletedExample, complete
from onediff_jax.sampling.generate import SampleConfig, TrainedModel

_SHAPES = WORLDS["basic"].shapes
CLASSES = ("background", *_SHAPES)
TRAINING_SCENES = 2000  # that the trivial answers are made of


class Line(NamedTuple):
    """One line of the table: a score of the model and of the trivial answer."""

    name: str
    model: float
    trivial: float
    answer: str  # what the trivial one is
    higher: bool = True  # whether higher is better


@dataclasses.dataclass(frozen=True)
class SceneTest:
    """How the scenes are sampled for scoring."""

    scenes: int = 200  # of the second half
    tokens: int = 16  # of a view
    predict: SampleConfig = SampleConfig(steps=16, guidance=2.0)  # what the rest determines
    draw: SampleConfig = SampleConfig(steps=30, guidance=3.0)  # images from text
    conditions: ConditionConfig = ConditionConfig(map_colors="fixed")
    seed: int = 0


class Scored(NamedTuple):
    """The table, and the examples that it was made of, by task and wanted view."""

    lines: tuple[Line, ...]
    completed: Mapping[tuple[str, str], Sequence[CompletedExample]]


def score(trained: TrainedModel, training: Source, held_out: Source, test: SceneTest) -> Scored:
    """Scores of `trained` on scenes of the second half of `held_out`."""
    first = len(held_out) // 2
    indices = range(first, min(first + test.scenes, len(held_out)))
    completed = {
        (task, wanted): complete(
            trained,
            held_out,
            indices,
            task,
            TASKS[task].builder.counts[0],
            (wanted,),
            test.tokens,
            test.conditions,
            test.draw if task == "text2image" else test.predict,
            test.seed,
        )
        for task, wanted in (
            ("depth2image", "depth"),
            ("semanticmap2image", "semantic"),
            ("image_inpainting", "image"),
            ("text2image", "image"),
        )
    }
    size = completed["text2image", "image"][0].example.size
    known = truths(training, range(min(TRAINING_SCENES, len(training))), size)
    true = truths(held_out, indices, size)
    lines = (
        *depth_lines(completed["depth2image", "depth"], true, known),
        map_line(completed["semanticmap2image", "semantic"], true, known),
        inpainting_line(completed["image_inpainting", "image"]),
        *text_lines(completed["text2image", "image"], true),
    )
    return Scored(lines, completed)


def truths(source: Source, indices: Sequence[int], size: tuple[int, int]) -> list[Record]:
    """What is known of scenes, at the size of their views."""
    fields = ("image", "depth", "instances", "names", "colors", "places")
    return [fit_record(source.read(i, fields), *size) for i in indices]


def depth_lines(
    completed: Sequence[CompletedExample], true: Sequence[Record], known: Sequence[Record]
) -> list[Line]:
    """Depth from images, beside the mean depth image of the training scenes."""
    mean = np.mean([maps.depth_image(record["depth"]) for record in known], 0)
    pairs = zip(completed, true, strict=True)
    made = [scores.depth_score(c.generated["depth"], record["depth"], FAR) for c, record in pairs]
    trivial = [scores.depth_score(mean, record["depth"], FAR) for record in true]
    answer = "mean depth of the training scenes"
    return [
        Line("depth AbsRel", averaged(made, 0), averaged(trivial, 0), answer, higher=False),
        Line("depth delta1", averaged(made, 1), averaged(trivial, 1), answer),
    ]


def averaged(values: Sequence[Sequence[float]], place: int) -> float:
    """Mean of the values at one place."""
    return float(np.mean([value[place] for value in values]))


def classes_of(record: Record) -> np.ndarray:
    """The class of every pixel."""
    of_instance = [0, *(CLASSES.index(name) for name in record["names"])]
    return np.array(of_instance)[record["instances"]]


def map_line(
    completed: Sequence[CompletedExample], true: Sequence[Record], known: Sequence[Record]
) -> Line:
    """Classes from images: every pixel takes the class whose color is nearest."""
    votes = [np.stack([classes_of(r) == i for r in known]).mean(0) for i in range(len(CLASSES))]
    usual = np.argmax(votes, 0)
    colors = maps.class_colors(_SHAPES, None)
    palette = [(0, 0, 0), *(maps.rgb(colors[name]) for name in _SHAPES)]
    made, trivial = 0, 0
    for c, record in zip(completed, true, strict=True):
        predicted, truth = (
            scores.nearest_color(c.generated["semantic"], palette),
            classes_of(record),
        )
        made = made + scores.confusion(predicted, truth, len(CLASSES))
        trivial = trivial + scores.confusion(usual, truth, len(CLASSES))
    answer = "most frequent class of every pixel"
    return Line("segmentation mIoU", scores.mean_iou(made), scores.mean_iou(trivial), answer)


def inpainting_line(completed: Sequence[CompletedExample]) -> Line:
    """The hole filled, beside the mean color of what is visible around it."""
    made, trivial = [], []
    for c in completed:
        truth, masked = c.example.views
        assert isinstance(truth, np.ndarray), "both views are images"
        inside = np.any(masked != truth, -1)
        mean = np.broadcast_to(np.round(truth[~inside].mean(0)).astype(np.uint8), truth.shape)
        made.append(scores.psnr_inside(c.generated["image"], truth, inside))
        trivial.append(scores.psnr_inside(mean, truth, inside))
    answer = "mean color around the hole"
    return Line("inpainting PSNR", float(np.mean(made)), float(np.mean(trivial)), answer)


def text_lines(completed: Sequence[CompletedExample], true: Sequence[Record]) -> list[Line]:
    """Named colors, and colors with their places, found in images from text.

    The trivial answer is the images of other captions.
    """
    found = [scores.detected_colors(c.generated["image"], PALETTE) for c in completed]
    named = [named_in(record) for record in true]
    others = named[1:] + named[:1]

    def colors(objects):
        return [{item.color for item in each} for each in objects]

    answer = "the same images under shuffled captions"
    return [
        Line(
            "prompted colors F1",
            scores.f1(colors(found), colors(named)),
            scores.f1(colors(found), colors(others)),
            answer,
        ),
        Line("colors and places F1", scores.f1(found, named), scores.f1(found, others), answer),
    ]


def named_in(record: Record) -> set[scores.Named]:
    """The objects that a scene's caption names."""
    return {scores.Named(*pair) for pair in zip(record["colors"], record["places"], strict=True)}

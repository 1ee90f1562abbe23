"""Forms: what is taken of a record, the views that are made, and the directions that they allow."""

import numpy as np
import pytest
from tiny import Blobs

from onediff_jax.data.conditions.make import ConditionConfig
from onediff_jax.data.tasks.builders import is_ray
from onediff_jax.data.tasks.table import TASKS, example_of
from onediff_jax.errors import BadRecord
from onediff_jax.ops.cameras import Camera

CONFIG = ConditionConfig()
RECORD = Blobs()[0]


def example(task: str, views: int, seed: int = 0, record=RECORD, config=CONFIG):
    return example_of(task, record, views, lambda shape: shape, np.random.default_rng(seed), config)


def same(a, b) -> bool:
    if isinstance(a, Camera) or isinstance(b, Camera):
        return isinstance(a, type(b)) and all(map(np.array_equal, a, b))
    return np.array_equal(a, b)


@pytest.mark.parametrize("task", ["faceid", "subject_driven"])
def test_a_subject_comes_with_the_asked_number_of_its_other_images(task):
    field = TASKS[task].builder.several
    for views in TASKS[task].builder.counts:
        drawn = example(task, views)
        assert len(drawn.views) == views and same(drawn.views[0], RECORD["image"])
        others = [view.tobytes() for view in drawn.views[1:]]
        assert len(set(others)) == views - 1
        assert set(others) <= {image.tobytes() for image in RECORD[field]}
    assert any(
        not same(example("faceid", 3, seed).views[1], example("faceid", 3).views[1])
        for seed in range(1, 6)
    )


def test_a_subject_prompt_numbers_its_images_in_their_order():
    record = RECORD | {"reference_captions": ["first", "second", "third", "fourth"]}
    drawn = example("faceid", 3, record=record)
    images = [image.tobytes() for image in record["references"]]
    first, second = (
        record["reference_captions"][images.index(view.tobytes())] for view in drawn.views[1:]
    )
    caption = record["caption"]
    assert drawn.prompt == f"[[faceid]] [[img0]] {caption} [[img1]] {first} [[img2]] {second}"
    drawn = example("subject_driven", 2)
    assert drawn.prompt.startswith(f"[[subject_driven]] <item: {RECORD['item']}> [[img0]] ")


def test_captions_may_be_lacking():
    bare = {name: RECORD[name] for name in ("image", "references", "frames", "cameras")}
    assert example("faceid", 2, record=bare).prompt == "[[faceid]] [[img0]] [[img1]]"
    assert example("multiview", 4, record=bare).prompt == "[[multiview]]"


def test_an_edit_shows_the_result_first_and_says_the_instruction_alone():
    drawn = example("image_editing", 2)
    assert same(drawn.views[0], RECORD["edited"]) and same(drawn.views[1], RECORD["image"])
    assert drawn.prompt == f"[[image_editing]] {RECORD['instruction']}"


def test_several_views_interleave_images_and_their_cameras():
    builder = TASKS["multiview"].builder
    for views in builder.counts:
        drawn, names = example("multiview", views), builder.names(views)
        assert names[:4] == ("image_0", "ray_0", "image_1", "ray_1") and len(names) == views
        for name, view in zip(names, drawn.views, strict=True):
            assert isinstance(view, Camera) == is_ray(name)
        frames = [frame.tobytes() for frame in RECORD["frames"]]
        found = [frames.index(view.tobytes()) for view in drawn.views[::2]]
        assert len(set(found)) == views // 2
        # Relative poses are those of the frames that are shown, up to one scale.
        true = [RECORD["cameras"][i] for i in found]
        for mine, other in zip(drawn.views[1::2], true, strict=True):
            expected = true[0].rotation.T @ other.rotation
            np.testing.assert_allclose(mine.rotation, expected, atol=1e-9)
            np.testing.assert_array_equal(mine.intrinsics, other.intrinsics)
        centers = np.stack([camera.center for camera in drawn.views[1::2]])
        np.testing.assert_array_equal(centers[0], 0)


def test_frames_lie_within_a_window_where_one_is_set():
    builder, spans = TASKS["multiview"].builder, {}
    for window in (0, 3):
        config = ConditionConfig(window=window)
        found = []
        for seed in range(200):
            taken = builder.choose(RECORD, 4, np.random.default_rng(seed), config)
            ids = [frame.tobytes() for frame in RECORD["frames"]]
            found.append([ids.index(frame.tobytes()) for frame in taken["frames"]])
        spans[window] = {abs(a - b) for a, b in found}
        assert {i for pair in found for i in pair} == set(range(12))
    assert max(spans[0]) == 11 and max(spans[3]) == 2


def test_too_few_images_are_a_fault_that_says_how_many():
    with pytest.raises(BadRecord, match="references holds 2 images; an example takes 3"):
        example("faceid", 4, record=RECORD | {"references": RECORD["references"][:2]})
    with pytest.raises(BadRecord, match="frames holds 12 images"):
        TASKS["multiview"].builder.choose(RECORD, 26, np.random.default_rng(0), CONFIG)


def test_a_condition_that_comes_with_the_record_is_not_made():
    ready = np.full(RECORD["image"].shape, 7, np.uint8)
    record = {"image": RECORD["image"], "caption": "a", "pictures": {"depth": ready}}
    drawn = example("depth2image", 2, record=record)
    assert same(drawn.views[1], ready) and drawn.prompt == "[[depth2image]] a"


@pytest.mark.parametrize("task", TASKS)
def test_every_direction_wants_some_views_and_leaves_others_or_words(task):
    builder = TASKS[task].builder
    for views in builder.counts:
        names = builder.names(views)
        assert len(set(names)) == views and not is_ray(names[0])
        directions = builder.directions(views)
        assert len({direction.name for direction in directions}) == len(directions)
        for direction in directions:
            assert direction.targets and set(direction.targets) <= set(names)
            assert len(direction.targets) < views or views == 1


def test_several_views_can_be_sampled_in_all_four_ways():
    wanted = {d.name: set(d.targets) for d in TASKS["multiview"].builder.directions(8)}
    images, rays = ({f"{kind}_{i}" for i in range(4)} for kind in ("image", "ray"))
    assert wanted["images"] == images - {"image_0"}
    assert wanted["cameras"] == rays
    assert wanted["images_from_text"] == images
    assert wanted["both"] == {"image_2", "image_3", "ray_1"}

"""Every shipped configuration builds, and its networks have shapes."""

import functools
import itertools
import operator
import runpy
from collections import Counter, defaultdict

import jax
import pytest
from places import ROOT

from onediff_jax.data.batching.packing import PERIOD, Packing
from onediff_jax.data.batching.settings import packed_slots
from onediff_jax.data.sources.cache import flat
from onediff_jax.errors import InputError
from onediff_jax.train.config import RunConfig, as_dict, base_config, run_config, settings_help
from onediff_jax.train.encoders import networks_of

CONFIGS = sorted((ROOT / "configs").glob("*.py"))


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_a_shipped_configuration_builds(file):
    config = run_config(runpy.run_path(str(file))["get_config"]())
    networks = networks_of(
        config.model, config.text, config.codec, config.text.vocabulary, config.remat, absent=True
    )
    shapes = jax.eval_shape(networks.init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) > 0
    assert run_config(as_dict(config)) == config
    docstring = runpy.run_path(str(file))["__doc__"]
    assert f"--config configs/{file.name}" in docstring  # the command that runs it


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_the_examples_of_a_shipped_configuration_fill_its_packed_slots(file):
    data = run_config(runpy.run_path(str(file))["get_config"]()).data
    for slot in data.row:
        fits = slot.tasks_of(data.tasks, data.counts)
        if slot.packed:
            wanted = {count: sum(tasks.values()) for count, tasks in fits.items()}
            packing = Packing(slot.views, wanted, 0)
            rows = [[count for count, _ in packing.fill(row)] for row in range(PERIOD)]
            assert all(sum(row) == slot.views for row in rows)
            drawn = Counter(itertools.chain.from_iterable(rows))
            for count, weight in wanted.items():
                share = weight / sum(wanted.values())
                assert drawn[count] / drawn.total() == pytest.approx(share, abs=0.01)


def test_the_base_is_the_released_model_and_names_no_data():
    config = base_config()
    assert config.model.width == 3840 and not config.data.sources
    with pytest.raises(InputError, match="data.row is empty"):
        run_config(config)


def test_a_task_that_no_slot_holds_is_refused_with_its_views():
    config = base_config()
    config.data.tasks = dict(text2image=1.0, faceid=1.0)
    config.data.row = (dict(views=1, tokens=16),)
    with pytest.raises(InputError, match=r"tasks.faceid is 1.0, and no slot .* 2 or 3 or 4 or 5"):
        run_config(config)


def test_a_task_may_be_called_by_its_other_name():
    config = base_config()
    config.data.tasks = dict(semantic2image=1.0)
    config.data.row = (dict(views=2, tokens=16, tasks=("semantic2image",)),)
    assert run_config(config).data.tasks == {"semanticmap2image": 1.0}


def test_every_setting_is_in_the_help_with_its_default_and_meaning():
    lines = dict(line.strip().split(" = ", 1) for line in settings_help() if " = " in line)
    for name, value in flat(as_dict(RunConfig())).items():
        assert lines[f"config.{name}"].removeprefix(f"{value}").strip(), name


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("steps", 0, " is 0; it must be at least 1"),
        ("optimizer.ema", 1.0, " is 1.0; it must be at least 0 and below 1"),
        ("optimizer.learning_rate", float("nan"), " is nan; it must be at least 0"),
        ("flow.mean", float("inf"), " is inf; it must be a finite number"),
        ("data.caption_dropout", 1.1, " is 1.1; it must be at least 0 and at most 1"),
        ("model.lora.targets", ("wq", "wx"), "[1] is 'wx'; it can be wq or wk or"),
        ("evaluate.sample.method", "rk4", " is 'rk4'; it can be euler or heun"),
        ("flow.task_weights", {"depth2image": 0.0}, ".depth2image is 0.0; it must be above 0"),
        ("flow.task_weights", {"depth2imag": 2.0}, " has 'depth2imag'; did you mean 'depth2image'"),
        ("data.row", ({"views": 0, "tokens": 4},), "[0].views is 0; it must be at least 1"),
        ("data.sources", {"a": {"kind": "folder", "weight": -1.0}}, ".a.weight is -1.0; it must"),
    ],
)
def test_a_value_that_is_not_allowed_is_refused_with_the_whole_name(setting, value, said):
    values = base_config().to_dict()
    *parents, last = setting.split(".")
    functools.reduce(operator.getitem, parents, values)[last] = value
    values["data"]["row"] = values["data"]["row"] or (dict(views=1, tokens=16),)
    values["data"]["tasks"] = dict(text2image=1.0)
    with pytest.raises(InputError) as refusal:
        run_config(values)
    assert str(refusal.value).startswith(f"config.{setting}{said}")


def data_of(name):
    """The settings `data` of a shipped configuration."""
    file = next(file for file in CONFIGS if file.stem == name)
    return run_config(runpy.run_path(str(file))["get_config"]()).data


def test_stage_2_has_the_published_numbers_of_views_and_equal_kinds_of_task():
    """Paper: 2 to 6 images with their cameras, a person with 1 to 3 references, equal budgets."""
    data = data_of("stage2_multitask")
    often, views = Counter(), defaultdict(set)
    for _, _, slot, packing in packed_slots(data, seed=0):
        filled = packing.mean_counts if packing else {slot.views: 1.0}
        for count, tasks in slot.tasks_of(data.tasks, data.counts).items():
            for task, weight in tasks.items():
                views[task].add(count)
                often[task] += filled[count] * weight / sum(tasks.values())
    assert views["multiview"] == {4, 6, 8, 10, 12}
    assert views["faceid"] == {2, 3, 4} and views["subject_driven"] == {2}
    several = ("multiview", "faceid")
    of_several = sum(often[task] for task in several)
    pairs = often.total() - often["text2image"] - of_several
    assert (often["text2image"], pairs) == pytest.approx((2, 2)) and 1.8 < of_several < 2
    shares = [often[task] / of_several for task in several]
    assert shares == pytest.approx([5 / 8, 3 / 8], abs=0.01)


def test_stage_3_multiview_has_scenes_in_3_to_5_images():
    data = data_of("stage3_multiview")
    (slot,) = data.row
    assert set(slot.tasks_of(data.tasks, data.counts)) == {6, 8, 10} and slot.tokens == 1024

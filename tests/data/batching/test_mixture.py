"""Which sources a task is mixed of, how often they come, and the table that says so."""

import collections
import dataclasses
import hashlib
import io

import numpy as np
import pytest
import rich.console
from loading import MIXED, SOURCES, Drawn, rows_of, small_tokenizer
from tiny import Blobs, tiny_config

from onediff_jax.data.batching.loader import Rows
from onediff_jax.data.batching.mixture import ingredients, mixture, sources_for, table_of
from onediff_jax.data.batching.settings import DataConfig, SlotConfig
from onediff_jax.data.records import SourceSettings
from onediff_jax.errors import InputError

ONE = DataConfig(tasks={"text2image": 1.0}, row=(SlotConfig(1, 4, count=4),))


def source(name: str, count: int, fields=frozenset({"image", "caption"}), **settings) -> Drawn:
    found = Drawn(name, count, fields)
    found.settings = SourceSettings(**settings)
    return found


def drawn(rows: Rows, count: int) -> collections.Counter:
    """Examples of so many rows, by their task and the number of their source."""
    examples = (sourced for number in range(count) for *_, sourced in rows.examples(number))
    return collections.Counter((p.example.task, p.source) for p in examples)


# --- rows ----------------------------------------------------------------------------------------


def digest(rows: Rows) -> str:
    found, empty = hashlib.sha256(), small_tokenizer()("")[0]
    for number in range(12):
        row = rows[number]
        for place, view, (example, source, faults) in rows.examples(number):
            found.update(f"{place} {view} {source} {faults} {example.task}".encode())
            found.update(example.prompt.encode())
            for shown in example.views:
                found.update(shown.tobytes() if isinstance(shown, np.ndarray) else b"camera")
        found.update((row.text == empty).all(-1).tobytes())  # dropped prompts
        for name in ("task", "source", "positions", "example_of_view", "token_mask"):
            found.update(getattr(row, name).tobytes())
    return found.hexdigest()[:16]


def test_rows_of_sources_without_settings_never_change():
    """A run goes on after an update as if there had been none: nothing here may be edited."""
    assert digest(rows_of()) == "2a4ab26fe6e2e391"
    blobs = {"a": Blobs(24), "b": Blobs(70)}
    assert digest(rows_of(tiny_config().data, sources=blobs)) == "13606bffe77fc8b3"


def test_enlarging_and_the_filter_reach_the_examples():
    rows = {
        name: rows_of(dataclasses.replace(ONE, **changes), sources={"mine": source("mine", 30)})
        for name, changes in (("usual", {}), ("box", dict(filter="box")))
    }
    assert digest(rows["usual"]) != digest(rows["box"])
    large = dataclasses.replace(ONE, row=(SlotConfig(1, 900),))
    with pytest.raises(InputError, match=r"100 records .* since data\.enlarge is 2"):
        rows_of(large, sources={"mine": source("mine", 30)})[0]
    rows_of(dataclasses.replace(large, enlarge=12.0), sources={"mine": source("mine", 30)})[0]


@pytest.mark.parametrize(
    ("few", "many", "expected"),
    [
        ({}, {}, 60 / 660),
        (dict(repeats=10), {}, 600 / 1200),
        (dict(weight=3.0), dict(weight=1.0), 3 / 4),
        (dict(weight=1.5, repeats=2), dict(weight=1.0), 3 / 4),
        (dict(weight=600.0), {}, 1 / 2),  # a weight stands for a number of records
        ({}, dict(tasks=("depth2image",)), 1.0),
        (dict(tasks=("text2image",)), {}, 60 / 660),
    ],
)
def test_a_source_has_the_share_that_its_settings_give_it(few, many, expected):
    # Not fewer records: see `test_loader.SOURCES`.
    sources = {"few": source("few", 60, **few), "many": source("many", 600, **many)}
    counts = drawn(rows_of(ONE, sources=sources), 50)
    assert counts["text2image", 0] / 200 == pytest.approx(expected, abs=1 / 200)


def test_every_record_of_a_repeated_source_comes_as_often_as_every_other():
    sources = {"few": source("few", 60, repeats=4), "many": source("many", 240)}
    rows = rows_of(ONE, sources=sources)
    prompts = (p.example.prompt for number in range(120) for *_, p in rows.examples(number))
    counts = collections.Counter(p.split()[-1] for p in prompts if "few" in p)
    assert len(counts) == 60 and set(counts.values()) == {4}


def test_a_task_is_served_by_the_sources_that_may_and_can():
    fields = frozenset({"image", "caption", "depth"})
    scenes = source("scene", 500, fields, tasks=("depth2image",))
    sources = {"mine": source("mine", 30), "scenes": scenes}
    assert list(sources_for("text2image", 1, sources)) == [0]
    assert list(sources_for("depth2image", 2, sources)) == [1]
    (part,) = ingredients({"canny2image": 2.0}, 2, sources)
    assert part == ("canny2image", 0, sources["mine"], 2.0)


def test_a_task_that_sources_leave_out_is_refused_with_their_names():
    sources = {"mine": source("mine", 30), "scenes": source("s", 9, tasks=("text2image",))}
    sources["mine"].settings = SourceSettings(tasks=("deblurring",))
    message = r"could serve task 'canny2image' leave it out of their tasks: mine, scenes\.  Add it"
    with pytest.raises(InputError, match=message):
        sources_for("canny2image", 2, sources)


# --- the table -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings", [{}, dict(weight=7.0, repeats=3, tasks=("text2image", "image_inpainting"))]
)
def test_the_table_is_what_the_rows_hold(settings):
    sources = {"rooms": Drawn("room", 60), "photos": SOURCES["photos"], "more": Drawn("mor", 50)}
    sources["more"].settings = SourceSettings(**settings)
    counts = drawn(rows_of(MIXED, sources=sources), 150)
    lines = mixture(MIXED, sources, rows=8)
    assert sum(line.share for line in lines) == pytest.approx(1)
    names = list(sources)
    assert {(line.task, names.index(line.source)) for line in lines} == set(counts)
    for line in lines:
        number = names.index(line.source)
        share = counts[line.task, number] / counts.total()
        assert line.share == pytest.approx(share, abs=0.02), line
        assert line.records == len(sources[line.source])
        a_row = counts[line.task, number] / 150
        assert line.epochs == pytest.approx(8000 * a_row / line.records, rel=0.15, abs=1.5)


def test_a_source_that_serves_nothing_is_in_the_table():
    sources = {"mine": source("mine", 30), "idle": source("idle", 9, tasks=("depth2image",))}
    lines = mixture(ONE, sources, rows=2)
    assert lines[0] == ("text2image", "mine", 1.0, 30, pytest.approx(8000 / 30))
    assert lines[1] == ("", "idle", 0.0, 9, 0.0)
    console = rich.console.Console(file=io.StringIO(), width=80)
    console.print(table_of(lines))
    said = [line.split("│") for line in console.file.getvalue().splitlines() if "│" in line]
    cells = [[cell.strip() for cell in line[1:-1]] for line in said]
    assert cells == [
        ["text2image", "mine", "100.0%", "30", "267"],
        ["none that the run trains", "idle", "0.0%", "9", "0"],
    ]


def test_tasks_come_in_the_order_of_the_config_and_weights_divide_a_slot():
    config = dataclasses.replace(
        ONE,
        tasks={"canny2image": 3.0, "text2image": 4.0, "deblurring": 1.0},
        row=(SlotConfig(1, 4), SlotConfig(2, 4)),
    )
    lines = mixture(config, {"mine": source("mine", 10)}, rows=1)
    shares = [("canny2image", 3 / 8), ("text2image", 1 / 2), ("deblurring", 1 / 8)]
    assert [(line.task, line.share) for line in lines] == shares


def test_sources_without_records_are_no_part_of_a_mixture():
    none, some = source("none", 0, weight=5.0), source("some", 60)
    (found,) = ingredients({"text2image": 1.0}, 1, {"none": none, "some": some})
    assert found.number == 1 and found.weight == 1
    with pytest.raises(InputError, match="No source that serves task 'text2image' has a record"):
        rows_of(ONE, sources={"none": source("none", 0)})

"""The demo finds what is done, goes on where it was, and shows its table."""

import contextlib
import importlib.util
import io
import json

import pytest
from PIL import Image
from places import ROOT

from onediff_jax.evaluate.scenes import SceneTest
from onediff_jax.sampling.generate import SampleConfig

TOOL = ROOT / "tools" / "demo.py"
SPEC = importlib.util.spec_from_file_location("demo", TOOL)
demo = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(demo)

CONFIG = """
import runpy
def get_config():
    config = runpy.run_path({original!r})["get_config"]()
    config.steps, config.rows = {steps}, 8
    config.model.update(width=24, depth=1, heads=2, kv_heads=1, multiple_of=8, unroll=1)
    config.text.encoder.update(width=16, depth=1, heads=2, head_width=8, hidden=16, unroll=1)
    config.codec.pictures = 50
    config.data.sources.scenes.update(path={scenes!r}, train=24, validation=12)
    config.evaluate.every = 0
    return config
"""


SCORE = demo.scene_test.score
NO_SCORES = lambda *_: demo.scene_test.Scored((), {})  # noqa: E731


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """A workdir, and what the demo said of it: half trained, then whole, then once more."""
    folder, told = tmp_path_factory.mktemp("demo"), []
    original, quick = str(demo.CONFIG), SampleConfig(steps=1, guidance=1.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "TEST", SceneTest(scenes=4, predict=quick, draw=quick))
        patch.setenv("COLUMNS", "120")
        for steps in (1, 2, 2):
            file = folder / f"config_{steps}.py"
            scenes = str(folder / "scenes")
            file.write_text(CONFIG.format(original=original, steps=steps, scenes=scenes))
            patch.setattr(demo, "CONFIG", file)
            score = NO_SCORES if steps == 1 else SCORE
            patch.setattr(demo.scene_test, "score", score)
            with contextlib.redirect_stdout(io.StringIO()) as said:
                demo.main(["--workdir", str(folder / "run")])
            told.append(said.getvalue())
    return folder / "run", told


def test_the_first_time_it_trains_and_an_unfinished_run_goes_on(told):
    first, second, _ = told[1]
    assert "training 1 steps" in first and "resumed" not in first
    assert "training 2 steps" in second and "resumed after step 1" in second
    assert "found" not in first + second  # scores of another step are not taken for this one's


def test_once_done_it_says_so_and_does_nothing_again(told):
    workdir, (_, second, third) = told
    assert f"found a trained model in {workdir}" in third
    assert f"found its scores in {workdir / 'scores.json'}" in third
    assert "training" not in third.split("held-out scenes")[0]
    table = [part[part.index("held-out scenes") :].rsplit("minutes")[0] for part in (second, third)]
    assert [line for line in table[0].splitlines()[:-1]] == table[1].splitlines()[:-1]


def test_the_table_has_every_score_beside_a_trivial_answer(told):
    workdir, (*_, last) = told
    lines = json.loads((workdir / "scores.json").read_text())["lines"]
    assert len(lines) == 6
    for line in lines:
        digits = 1 if "PSNR" in line["name"] else 3
        row = next(row for row in last.splitlines() if line["name"] in row)
        assert f"{line['model']:.{digits}f}" in row and f"{line['trivial']:.{digits}f}" in row
        assert line["answer"] in row


def test_the_images_that_it_names_are_there(told):
    *_, last = told[1]
    named = [line.strip() for line in last.splitlines() if line.strip().endswith(".png")]
    assert len(named) == 4
    for file in named:
        assert min(Image.open(file).size) > 100

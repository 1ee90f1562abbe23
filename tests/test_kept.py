"""What an earlier version wrote is still read: tests/kept/DATE.zip, by the code of that day.

images/        six captioned images, two of them held out
run/           a checkpoint of configs/pictures_tiny.py with the options of command.txt
cache/         the same images, encoded by tools/encode_dataset.py with these options
configs.json   every shipped configuration, as checkpoints keep it
"""

import json
import pathlib
import zipfile

import numpy as np
import pytest
from places import TESTS

from onediff_jax import cli
from onediff_jax.train.config import run_config
from onediff_jax.train.restore import restore_model

KEPT = sorted((TESTS / "kept").glob("*.zip"))
CONFIG = str(TESTS.parent / "configs" / "pictures_tiny.py")


@pytest.fixture(scope="module", params=KEPT, ids=lambda file: file.stem)
def kept(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept")
    with zipfile.ZipFile(request.param) as written:
        written.extractall(folder)
    return folder


def trained(folder, monkeypatch, config, options, workdir):
    """Trains until step 3; the lines of its metrics."""
    monkeypatch.chdir(folder)  # the options name relative paths
    command = ["train", "--config", str(config), *options, "--workdir", workdir]
    command += ["--config.steps=3", "--config.rows=8", "--config.evaluate.every=0"]  # 8 devices
    assert cli.main(command) == 0
    return [json.loads(line) for line in (folder / workdir / "metrics.jsonl").open()]


def options_in(folder) -> list[str]:
    """The options that everything in the folder was written with."""
    return (folder / "command.txt").read_text().split()


def test_an_earlier_checkpoint_can_be_sampled(kept, monkeypatch, tmp_path):
    monkeypatch.chdir(kept)
    assert restore_model(pathlib.Path("run")).step == 2
    command = ["sample", "--checkpoint", "run", "--task", "text2image", "--prompt", "red squares"]
    assert cli.main([*command, "--steps", "2", "--out", str(tmp_path)]) == 0
    assert len(list(tmp_path.glob("*.png"))) == 1


@pytest.mark.slow  # it compiles a step
def test_a_run_goes_on_from_an_earlier_checkpoint(kept, monkeypatch, capsys):
    lines = trained(kept, monkeypatch, CONFIG, options_in(kept), "run")
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert np.isfinite(lines[-1]["loss"])
    assert "resumed after step 2" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_reads_an_earlier_cache(kept, monkeypatch):
    config = kept / "from_cache.py"
    config.write_text(
        "import runpy\n"
        "def get_config():\n"
        f"    config = runpy.run_path({CONFIG!r})['get_config']()\n"
        "    config.data.sources = dict(folder=dict(kind='cache', path='cache/folder'))\n"
        "    return config\n"
    )
    options = [option for option in options_in(kept) if "data.sources" not in option]
    lines = trained(kept, monkeypatch, config, options, "from_cache")
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert np.isfinite([line["loss"] for line in lines]).all()


def test_earlier_configurations_are_understood(kept):
    for name, values in json.loads((kept / "configs.json").read_text()).items():
        assert run_config(values).steps == values["steps"], name

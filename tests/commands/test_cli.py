"""Every mistake is one line that names the setting, the value and the way out."""

import dataclasses
import json
import os
import pathlib
import runpy
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from places import ROOT

from onediff_jax import cli, processes
from onediff_jax.commands import encode
from onediff_jax.errors import InputError
from onediff_jax.sampling.generate import SampleConfig
from onediff_jax.train import loop

ROWS = "--config.rows=8"  # a multiple of the devices of the tests
SCENES = str(ROOT / "configs" / "scenes_tiny.py")
FORMER_SCRIPTS = ("check_data", "make_shards", "import_torch", "export_torch")
PICTURES = str(ROOT / "configs" / "pictures_tiny.py")


def refused(capsys, *arguments) -> tuple[int, str]:
    """Status and message of a command that must be refused in one line."""
    status = cli.main([str(argument) for argument in arguments])
    said = capsys.readouterr().err
    assert status in (1, 2) and said.count("\n") == 1 and "Traceback" not in said, said
    return status, said


def folder_of(tmp_path, lines, names=("a.png",)) -> pathlib.Path:
    for name in names:
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / name)
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    return tmp_path


def test_help_names_the_commands_and_every_setting(capsys):
    assert cli.main(["--help"]) == 0
    assert {"train", "sample"} <= set(capsys.readouterr().out.split())
    assert cli.main(["train", "--help"]) == 0
    said = capsys.readouterr().out
    assert "config.optimizer.learning_rate" in said and "--workdir" in said
    assert cli.main(["sample", "--help"]) == 0
    assert "--guidance" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("script", "command"),
    [("encode_dataset", "encode"), *((n, n) for n in FORMER_SCRIPTS)],
)
def test_commands_that_were_scripts_are_still_found_there(capsys, monkeypatch, script, command):
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "tools" / f"{script}.py"), run_name="__main__")
    assert ended.value.code == 0
    assert f"python -m onediff_jax {command} " in capsys.readouterr().out


def test_help_and_refusals_come_without_jax():
    program = (
        "import sys\nfrom onediff_jax import cli\n"
        "for name in cli.COMMANDS.keys() - {'train'}:\n"
        "    assert cli.main([name, '--help']) == 0 and cli.main([name, '--x']) == 2\n"
        "assert 'jax' not in sys.modules and 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, cwd=ROOT)


@pytest.mark.parametrize(
    ("arguments", "read"),
    [
        (["--config", "C", "--out", "o", "--states", "--passes=3"], dict(states=True, passes=3)),
        (["--config=C", "--out=o", "--nostates"], dict(states=False, batch=16)),
    ],
)
def test_options_are_written_with_and_without_an_equals_sign(monkeypatch, arguments, read):
    given = [SCENES if a == "C" else a.replace("=C", f"={SCENES}") for a in arguments]
    seen = {}
    monkeypatch.setattr(encode, "run", lambda options: seen.update(options.flag_values_dict()))
    assert cli.main(["encode", *given]) == 0
    assert seen | read == seen and seen["out"] == "o"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["tran"], "did you mean 'train'"),
        (["train", "--config", SCENES], "train needs --workdir;"),
        (["encode"], "encode needs --config and --out;"),
        (
            ["train", "--config", "configs/none.py", "--workdir", "w"],
            "'configs/none.py', and there",
        ),
        (["train", "--config", SCENES, "--workdir", "w", "--wrkdir=2"], "wrkdir"),
        (["train", "--config", SCENES, "--workdir", "w", "extra"], "'extra'"),
        (["sample", "--checkpoint", "c", "--task", "text2image", "--out", "o", "--num=x"], "num"),
    ],
)
def test_a_command_that_cannot_be_understood_is_refused(capsys, arguments, expected):
    _, said = refused(capsys, *arguments)
    assert expected in said


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("model.widht=3", "width"),
        ("modle.width=3", "model"),
        ("model.width=100", "use 72 or 108"),
        ("model.width=wide", "model.width"),
        ("model.attention=flush", "chunked"),
        ("rows=7", "use 8"),
        ("optimizer.accumulate=3", "accumulated"),
        ("mesh.fsdp=3", "divisor of"),
        ("optimizer.schedule=cosin", "cosine"),
        ("data.tasks.text2imag=1.0", "did you mean 'text2image'"),
        ("data.prompt_dropout=2.0", "prompt_dropout"),
        ("flow.balance=view", "token or example"),
        ("data.sources.scenes.kind=scene", "did you mean 'scenes'"),
        ("data.sources.scenes.sise=3", "did you mean 'size'"),
        ("codec.kind=vae", "linear"),
        ("steps=0", "at least 1"),
        ("remat=some", "remat"),
    ],
)
def test_a_wrong_setting_is_refused_before_anything_is_written(capsys, tmp_path, setting, expected):
    workdir = tmp_path / "run"
    arguments = ["train", "--config", SCENES, "--workdir", workdir, f"--config.{setting}"]
    _, said = refused(capsys, *arguments)
    assert expected in said and not workdir.exists()


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (None, "metadata.jsonl is missing"),
        (['{"file_name": "b.png", "text": "b"}'], "line 1: there is no file 'b.png'"),
        (['{"file_name": "a.png", "text": "a"}', "oops"], "line 2"),
        (['{"file_name": "a.png", "text": "a"}'], "validation"),
    ],
)
def test_a_wrong_folder_is_refused_with_its_line(capsys, tmp_path, lines, expected):
    folder = tmp_path / "pictures"
    folder.mkdir()
    if lines:
        folder_of(folder, lines)
    workdir = tmp_path / "run"
    path = f"--config.data.sources.folder.path={folder}"
    _, said = refused(capsys, "train", "--config", PICTURES, "--workdir", workdir, path, ROWS)
    assert expected in said and not workdir.exists()


def test_unreadable_images_are_named_when_there_is_nothing_else(capsys, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    names = [f"{i}.png" for i in range(8)]
    lines = [json.dumps({"file_name": name, "text": "a"}) for name in names]
    folder_of(folder, lines, names)
    for name in names:
        (folder / name).write_bytes(b"not a image")
    settings = [f"folder.path={folder}", "folder.validation=2"]
    settings = [f"--config.data.sources.{setting}" for setting in settings]
    _, said = refused(
        capsys, "train", "--config", PICTURES, "--workdir", tmp_path / "run", ROWS, *settings
    )
    assert ".png" in said and "100 records" in said


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--task", "text2imag"], "did you mean 'text2image'"),
        (["--task", "depth2image", "--given", "depth"], "NAME=FILE"),
        (["--task", "depth2image", "--given", "death=a.png"], "image, depth"),
        (["--task", "depth2image", "--given", "depth=none.png"], "none.png"),
        (["--task", "text2image"], "no checkpoint"),
        (["--task", "text2image", "--steps=0"], "at least 1"),
        (["--task", "text2image", "--method=rk4"], "euler or heun"),
        (["--task", "text2image", "--num=0"], "--num"),
    ],
)
def test_a_sample_that_cannot_be_made_is_refused(capsys, tmp_path, arguments, expected):
    out = tmp_path / "out"
    _, said = refused(capsys, "sample", "--checkpoint", tmp_path / "none", "--out", out, *arguments)
    assert expected in said and not out.exists()


@pytest.mark.parametrize(
    ("error", "status", "expected"),
    [
        (InputError("rows is 7; use 8."), 1, "process 0 of 1 on HOST: rows is 7; use 8."),
        (OSError(5, "Input/output error"), 1, "process 0 of 1 on HOST: [Errno 5]"),
        (RuntimeError("device lost"), 1, "process 0 of 1 on HOST: RuntimeError: device lost"),
        (KeyboardInterrupt(), 130, "process 0 of 1 on HOST: interrupted"),
    ],
)
def test_one_of_several_processes_says_which_failed_and_waits_for_none(
    capsys, monkeypatch, tmp_path, error, status, expected
):
    def fail(*_):
        raise error

    class Ended(BaseException):
        """What the end of the process is to this test."""

    def end(status):
        raise Ended(status)

    monkeypatch.setattr(processes, "join", lambda: None)
    monkeypatch.setattr(processes, "is_joined", lambda: True)
    monkeypatch.setattr(processes.platform, "node", lambda: "HOST")
    monkeypatch.setattr(loop, "train", fail)
    monkeypatch.setattr(os, "_exit", end)
    arguments = ["train", "--config", SCENES, "--workdir", str(tmp_path), "--distributed"]
    with pytest.raises(Ended) as ended:
        cli.main(arguments)
    said = capsys.readouterr().err
    assert ended.value.args == (status,) and expected in said
    assert ("Traceback" in said) == isinstance(error, RuntimeError)


def test_options_of_sample_are_all_its_settings_with_their_defaults():
    options = cli.COMMANDS["sample"].options
    names = [field.name for field in dataclasses.fields(SampleConfig)]
    assert SampleConfig(**{name: options[name].default for name in names}) == SampleConfig()

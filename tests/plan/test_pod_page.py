"""The commands of docs/pod.md: every one is understood, and each finds what others made."""

import os
import pathlib
import re
import runpy
import shlex
import shutil
import subprocess

import pytest
from cloud import asked, launched, verbs
from cloud import world as world  # a fixture
from places import ROOT

from onediff_jax import cli
from onediff_jax.commands import doctor
from onediff_jax.commands import encode as encode_dataset
from onediff_jax.train.config import locations, resolve_paths, run_config

PAGE = (ROOT / "docs" / "pod.md").read_text()
PYTHON, LAUNCH = ".venv/bin/python", "launch/tpu_queued.sh"


def commands() -> list[list[str]]:
    """The words of every command of the page, without comments."""
    blocks = re.findall(r"(?:^    \S.*\n(?:^     .*\n)*)+", PAGE, re.MULTILINE)
    lines = "".join(blocks).replace("\\\n", " ").replace("$PWD", "/here").splitlines()
    found = [shlex.split(line, comments=True) for line in lines]
    (prefix,) = (words[0].removeprefix("S=") for words in found if words[0].startswith("S="))
    return [[word.replace("$S", prefix) for word in words] for words in found]


def given(*start: str) -> list[list[str]]:
    """What follows in the commands that begin so."""
    found = [words[len(start) :] for words in commands() if words[: len(start)] == list(start)]
    assert found, start
    return found


@pytest.fixture
def run():
    """The run that the page starts, as it is on a worker, and the words that start it."""
    (words,) = given(LAUNCH, "run")
    config = runpy.run_path(str(ROOT / words[1]))["get_config"]()
    config.root = next(w.split("=")[1] for w in words if w.startswith("--config.root="))
    return resolve_paths(run_config(config)), words


def test_run_does_what_the_page_says(run, world):
    _, words = run
    exported = [w[1:] for w in commands() if w[0] == "export"]
    variables = dict(word.split("=", 1) for words in exported for word in words)
    assert set(variables) == {"NAME", "ZONE", "TPU", "SPOT", "JAX_COMPILATION_CACHE_DIR"}
    done = launched(world, "tpu_queued.sh", "run", *words, plan="done done", **variables)
    assert done.returncode == 0, done.stderr
    assert verbs(world) == ["create", "scp", "delete"]
    trained = asked(world, "python")
    assert trained == [["-m", "onediff_jax", "train", "--distributed", *words]] * 2
    told = (world / "asked").read_text()
    assert told.count("environment gs://BUCKET/programs\n") == 2


def test_the_parts_of_run_are_commands_and_take_the_same_words(run, world):
    _, words = run
    parts = [w[1] for w in commands() if w[0] == LAUNCH and w[1] != "run"]
    assert parts == ["create", "wait", "install", "doctor", "start", "follow", "status", "stop",
                     "delete"]  # fmt: skip
    assert given(LAUNCH, "doctor") == given(LAUNCH, "start") == [words]
    for part in ("create", "wait", "install", "doctor"):
        arguments = words if part == "doctor" else []
        assert launched(world, "tpu_queued.sh", part, *arguments, plan="done").returncode == 0
    assert asked(world, "python") == [
        ["-m", "onediff_jax", "doctor", "--distributed", *words]
    ] * 2  # fmt: skip


def test_the_caches_that_the_page_makes_are_those_that_its_run_reads(run, monkeypatch, capsys):
    config, _ = run
    (words,) = given(PYTHON, "-m", "onediff_jax", "encode")
    seen = {}
    monkeypatch.setattr(
        encode_dataset, "encode",
        lambda config, out, *options: seen.update(config=config, out=out) or {},
    )  # fmt: skip
    assert cli.main(["encode", *words]) == 0, capsys.readouterr().err
    made = resolve_paths(seen["config"])
    written = {f"config.data.sources.{name}.path": f"{seen['out']}/{name}"
               for name in made.data.sources}  # fmt: skip
    read = {n: path for n, path in locations(config).items() if n.startswith("config.data.sources")}
    assert written == read
    sources = [path for name, path in locations(made).items() if name in written]
    assert all(path.startswith("/data/") for path in sources)
    assert made.data.conditions.hed == "/here/" + given(PYTHON, "tools/datasets/fetch_hed.py")[0][1]
    assert made.text.path == config.text.path and not made.tune.start
    assert made.data.row == config.data.row


def test_what_the_page_copies_to_the_bucket_is_where_its_run_looks(run):
    config, words = run
    copies = [w[:-1] + [w[-1].rstrip("/")] for w in given("gcloud", "storage", "cp")]
    there = {f"{to}/{pathlib.Path(file).name}" for _, *files, to in copies for file in files}
    parts = {f"{config.text.path}/{part}" for part in ("vae", "text_encoder", "tokenizer")}
    assert config.text.path == config.codec.path and parts <= there
    (imported,) = given(PYTHON, "-m", "onediff_jax", "import_torch")
    start = re.search(r"--config\.tune\.start=(\S+?)`", PAGE)[1]
    assert imported[-1] == start and f"{config.root}/{start}" in there
    assert words[words.index("--workdir") + 1].startswith(f"{config.root}/runs/")


@pytest.mark.parametrize("name", ["plan", "doctor"])
def test_the_commands_for_a_laptop_are_understood(name, monkeypatch):
    seen = []
    monkeypatch.setattr("onediff_jax.commands.plan.plan", lambda *given: seen.append(given))
    monkeypatch.setattr(doctor, "checks", lambda *given: seen.append(given) or [])
    monkeypatch.chdir(ROOT)
    for words in given(PYTHON, "-m", "onediff_jax", name):
        assert cli.main([name, *words]) == 0
    assert len(seen) == len(given(PYTHON, "-m", "onediff_jax", name))


def test_every_command_of_the_page_knows_its_options():
    found = [w[3:] for w in commands() if w[:3] == [PYTHON, "-m", "onediff_jax"]]
    assert {name for name, *_ in found} >= {"plan", "doctor", "encode", "make_shards", "check_data"}
    for name, *words in found:
        used = {word[2:].split("=")[0].split(".")[0] for word in words if word[:2] == "--"}
        assert used <= cli.COMMANDS[name].options.keys(), (name, words)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("gcloud"), reason="gcloud is not here")
def test_gcloud_knows_the_commands_of_the_page(tmp_path):
    for words in [w for w in commands() if w[:2] == ["gcloud", "storage"]]:
        verb = [word for word in words[1:4] if re.fullmatch(r"[a-z-]+", word)]
        told = subprocess.run(
            ["gcloud", *verb, "--help"], env=os.environ | {"CLOUDSDK_CONFIG": str(tmp_path)},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        used = {word.split("=")[0] for word in words if word.startswith("--")}
        assert used <= set(re.findall(r"--[a-z-]+", told.stdout)), words

"""Before a run: everything that is wrong is said, with the way out, and what is right passes."""

import dataclasses
import json
import re
import shutil
import types

import jax
import numpy as np
import pytest
from caches import config_with_cache, write_cache
from etils import epath
from tiny import Blobs, tiny_config

from onediff_jax import cli
from onediff_jax.commands import doctor
from onediff_jax.commands.doctor import FAILED, OK, WARNING, checkpoint_bytes, checks
from onediff_jax.data.records import SourceSettings
from onediff_jax.data.registry import SOURCES
from onediff_jax.errors import InputError
from onediff_jax.train.config import as_dict, base_config, run_config


@dataclasses.dataclass(frozen=True)
class Broken(SourceSettings):
    """Settings of a source some of whose records are at fault, or whose disk is."""

    faulty: int = 0  # every so many-th record
    disk: bool = False
    fields: tuple[str, ...] = ()  # that it has; empty: all

    def records(self, split):
        del split
        return BrokenBlobs(self)


class BrokenBlobs(Blobs):
    def __init__(self, settings: Broken):
        super().__init__()
        self._settings = settings
        self.fields = frozenset(settings.fields) or self.fields

    def __getitem__(self, index):
        if self._settings.disk:
            raise OSError(5, "Input/output error", "shard-00003")
        record = super().__getitem__(index)
        if self._settings.faulty and index % self._settings.faulty == 0:
            record["image"] = np.zeros((0, 8, 3), np.uint8)
        return record


SOURCES["broken"] = Broken


def values(**changes) -> dict:
    """Settings of a tiny run with some of them changed, by dotted name with __ for the dot."""
    found = as_dict(tiny_config())
    for name, value in changes.items():
        *inner, last = name.split("__")
        section = found
        for part in inner:
            section = section[part]
        section[last] = value
    return found


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return write_cache(tmp_path_factory.mktemp("cache"))


def cached_values(folder, **changes) -> dict:
    """Settings of a run that reads a cache."""
    given = as_dict(config_with_cache(folder)) | {"steps": 3}
    given["text"] |= changes
    return given


def test_a_run_from_a_cache_that_matches_it_passes(cache):
    made = {check.subject: check for check in checks(cached_values(cache))}
    assert {check.state for check in made.values()} == {OK}, made
    assert made["data blobs train"].said == "12 records, encoded; 16 examples were read"
    assert made["data caches"].said == "blobs hold what the run would encode"


def test_a_cache_that_does_not_match_or_is_damaged_is_named(cache, tmp_path):
    other = found("data caches", cached_values(cache, length=20))
    assert other.state == FAILED
    assert "manifest.json: text.length is 12, and 20 in this run" in other.said
    changed = shutil.copytree(cache, tmp_path / "changed")
    file = changed / "text2image-1x4-00000.array_record"
    file.write_bytes(file.read_bytes()[:-1])
    damaged = found("data blobs train", cached_values(changed))
    assert damaged.state == FAILED and "00000.array_record is" in damaged.said


def test_released_encoders_that_are_not_there_are_named():
    given = values()
    given["text"] |= {"kind": "t5", "path": "/nowhere"}
    missing = found("encoders", given)
    assert missing.state == FAILED and "/nowhere" in missing.said


def found(subject: str, given: dict, workdir=None, topology=None) -> doctor.Check:
    return next(check for check in checks(given, workdir, topology) if check.subject == subject)


def test_a_run_that_is_well_passes_every_check_and_nothing_is_left(tmp_path):
    made = list(checks(values(), epath.Path(tmp_path / "run")))
    assert [check.subject for check in made] == [
        "config", "data blobs train", "data blobs validation", "data tasks", "devices", "mesh",
        "rows", "workdir", "resuming", "disk",
    ]  # fmt: skip
    assert {check.state for check in made} == {OK}, made
    said = {check.subject: check.said for check in made}
    assert said["data blobs train"] == "24 records; 8 were read"
    assert said["devices"].startswith("8 cpu of 1 processes")
    assert not list((tmp_path / "run").iterdir())


@pytest.mark.parametrize(
    ("subject", "changes", "state", "words"),
    [
        ("config", dict(model__width=25), FAILED, "use"),
        ("config", dict(stepz=3), FAILED, "steps"),
        ("data blobs train", dict(data__sources__blobs={"kind": "shards", "path": "/none"}),
         FAILED, "no folder '/none'"),
        ("data blobs train", dict(data__sources__blobs={"kind": "blobs", "count": 0}), WARNING,
         "no records"),
        ("data blobs train", dict(data__sources__blobs={"kind": "broken", "faulty": 3}), WARNING,
         "4 of 8 records are bad: record 0"),
        ("data blobs train", dict(data__sources__blobs={"kind": "broken", "faulty": 1}), FAILED,
         "8 of 8 records are bad"),
        ("data blobs train", dict(data__sources__blobs={"kind": "broken", "disk": True}), FAILED,
         "shard-00003"),
        ("data tasks",
         dict(data__sources__blobs={"kind": "broken", "fields": ("image", "caption", "depth")}),
         FAILED, "Set data.tasks.pose2image to 0"),
        ("mesh", dict(mesh={"data": -1, "fsdp": 3}), FAILED, "divisor of 8"),
        ("rows", dict(rows=12), FAILED, "use 8 or 16"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_the_way_out(subject, changes, state, words):
    check = found(subject, values(**changes))
    assert check.state == state and words in check.said and "\n" not in check.said


def test_after_a_wrong_configuration_nothing_is_checked():
    assert len(list(checks(values(rows=0)))) == 1


def test_a_workdir_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    check = found("workdir", values(), epath.Path(tmp_path / "file" / "run"))
    assert check.state == FAILED and "file" in check.said


def test_a_workdir_that_does_not_show_what_was_renamed_is_refused(tmp_path, monkeypatch):
    workdir = epath.Path(tmp_path)
    monkeypatch.setattr(type(workdir), "replace", lambda *_: None)
    check = found("workdir", values(), workdir)
    assert check.state == FAILED and "use one that they share" in check.said


def test_a_checkpoint_of_another_model_is_refused_and_one_of_this_run_is_told(
    tmp_path, monkeypatch
):
    saved = json.loads(json.dumps(as_dict(tiny_config())))
    monkeypatch.setattr(doctor.checkpoint, "newest_step", lambda _: 1200)
    monkeypatch.setattr(doctor.checkpoint, "saved_run", lambda _: (saved, None, 1200))
    check = found("resuming", values(steps=9), epath.Path(tmp_path))
    assert (check.state, check.said) == (OK, "goes on after step 1,200")
    check = found("resuming", values(model__width=48), epath.Path(tmp_path))
    assert check.state == FAILED and "model.width is 48, and 24 in the checkpoint" in check.said


def test_the_released_model_takes_sixteen_bytes_a_parameter():
    parameters = checkpoint_bytes(run_config(released())) / 16  # weights, average, two moments
    assert 0 < parameters - 2_800_389_184 < 10e6  # and a small text encoder


def released():
    config = base_config()
    config.text.encoder.update(width=2048, depth=1, heads=1, head_width=8, hidden=8)  # T5-XL's
    config.data.sources.blobs = {"kind": "blobs", "count": 24}
    config.data.tasks = {"text2image": 1.0}
    config.data.row = (dict(views=1, tokens=4),)
    return config


def test_checkpoints_that_do_not_fit_the_disk_are_refused(tmp_path, monkeypatch):
    each = checkpoint_bytes(tiny_config())
    for free, state in ((3 * each, OK), (3 * each - 1, FAILED)):  # two are kept, one is written
        usage = types.SimpleNamespace(free=free)
        monkeypatch.setattr(shutil, "disk_usage", lambda _, usage=usage: usage)
        workdir = epath.Path(tmp_path / "new" / "run")
        check = doctor.run_check("disk", lambda w=workdir: doctor.check_disk(tiny_config(), w))
        assert check.state == state and (state == OK or "lower checkpoint.keep" in check.said)


def test_devices_that_add_up_wrongly_are_told(monkeypatch):
    monkeypatch.setattr(jax, "device_get", lambda _: np.float32(27))
    check = found("devices", values())
    assert check.state == FAILED and "add up to 27.0, not 28.0" in check.said


def test_for_a_slice_that_is_not_here_the_plan_decides(monkeypatch):
    asked = []

    def plan(given, topology):
        asked.append((given["rows"], topology))
        if topology == "v3-8":
            raise InputError("the step needs 20 of 15 GiB; raise mesh.fsdp.")

    monkeypatch.setattr(doctor.planning, "plan", plan)
    given = values(mesh={"data": 4, "fsdp": 64}, rows=256)
    done = {check.subject: check for check in checks(given, None, "v3-256")}
    assert done["plan"].said == "fits v3-256" and not {"mesh", "rows"} & set(done)
    check = found("plan", given, topology="v3-8")
    assert check.state == FAILED and "raise mesh.fsdp" in check.said
    assert asked == [(256, "v3-256"), (256, "v3-8")]


def test_the_command_prints_a_line_a_check_and_its_status_says_whether_any_failed(tmp_path, capsys):
    config = tmp_path / "config.py"
    config.write_text(
        "import ml_collections, tiny\nfrom onediff_jax.train.config import as_dict\n"
        "def get_config():\n    return ml_collections.ConfigDict(as_dict(tiny.tiny_config()))\n"
    )
    arguments = ["doctor", "--config", str(config), "--workdir", str(tmp_path / "run")]
    assert cli.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10 and all(line.startswith("ok      ") for line in lines)
    assert cli.main([*arguments, "--config.rows=7"]) == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if line[:2] != "ok"]
    assert len(failed) == 1 and re.match("failed  rows: rows is 7, .*use 8", failed[0])

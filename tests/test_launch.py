"""The scripts that start runs, with stand-ins for the programs that they ask."""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import yaml
from cloud import LAUNCH, NEW, TRACKED, asked, launched, verbs
from cloud import world as world  # a fixture

from onediff_jax.cli import STOPPED

ARGUMENTS = ["--config", "configs/stage 2.py", "--config.data.tasks={'text2image': 1.0}"]


def test_a_run_on_a_tpu_survives_preemption_and_stops_and_ends_with_the_tpu_given_back(world):
    done = launched(world, "tpu_queued.sh", "run", *ARGUMENTS, plan="preempted stopped slow")
    assert done.returncode == 0, done.stderr
    assert verbs(world) == ["create", "scp", "delete", "create", "scp", "delete"]
    first, second = (given for given in asked(world, "gcloud") if given[3] == "create")
    assert first == second and first[4:] == [
        "stage2", "--accelerator-type=v3-256", "--runtime-version=tpu-ubuntu2204-base",
        "--node-id=stage2", "--zone=z",
    ]  # fmt: skip
    trained = asked(world, "python")
    assert len(trained) == 6  # three starts on two workers
    assert all(
        given == ["-m", "onediff_jax", "train", "--distributed", *ARGUMENTS] for given in trained
    )
    for words in ("stage2 was preempted", "stopped, and goes on", "training is done"):
        assert done.stderr.count(words) == 1


def test_training_that_fails_is_not_repeated_and_its_tpu_is_left_to_look_at(world):
    done = launched(world, "tpu_queued.sh", "run", *ARGUMENTS, plan="failed done")
    assert done.returncode == 1 and "training failed; stage2 is still there" in done.stderr
    assert verbs(world) == ["create", "scp"] and len(asked(world, "python")) == 2


def test_run_joins_a_training_that_is_under_way_and_stop_makes_it_save(world):
    for part in ("create", "wait", "install"):
        assert launched(world, "tpu_queued.sh", part).returncode == 0
    assert launched(world, "tpu_queued.sh", "start", plan="waiting done").returncode == 0
    told = launched(world, "tpu_queued.sh", "status").stdout
    assert told.splitlines() == ["TPU: ACTIVE", "told running", "told running"]
    following = subprocess.Popen(
        [world / "repository" / "launch" / "tpu_queued.sh", "run"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert following.stdout.readline() == "training\n"
    assert launched(world, "tpu_queued.sh", "stop").returncode == 0
    said, errors = following.communicate(timeout=600)
    assert following.returncode == 0 and "saving" in said and "stopped, and goes on" in errors
    assert len(asked(world, "python")) == 4


@pytest.mark.parametrize("git", [True, False])
def test_every_worker_gets_the_code_and_no_weights_caches_or_runs(world, git):
    if not git:  # a copy without its history
        shutil.rmtree(world / "repository" / ".git")
        (world / "repository" / "onediff_jax" / "__pycache__").mkdir()
        (world / "repository" / "onediff_jax" / "__pycache__" / "old.pyc").touch()
    for part in ("create", "wait", "install"):
        assert launched(world, "tpu_queued.sh", part).returncode == 0
    for worker in "01":
        folder = world / "workers" / worker / "onediff_jax"
        files = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
        files -= {".venv/installed", ".venv/bin/python"}
        code = {name for name in TRACKED if git or name.split("/")[0] not in ("docs", "assets")}
        launch = {f"launch/{file.name}" for file in LAUNCH.iterdir()}
        assert files == {*code, *NEW, *launch} - {"docs/gone.md"}
    installs = [given for given in asked(world, "uv") if given[0] == "pip"]
    assert len(installs) == 2 and all(".[tpu,gcs,t5]" in given for given in installs)


@pytest.mark.parametrize(
    ("environment", "flags"),
    [
        (dict(TPU="v5e-256"), ["--accelerator-type=v5litepod-256", "--node-id=stage2"]),
        (dict(TPU="v6e-256", SPOT="1"), ["--runtime-version=v2-alpha-tpuv6e", "--spot"]),
        (dict(NODES="2", PROJECT="p"), ["--node-count=2", "--node-prefix=stage2", "--project=p"]),
        (dict(RUNTIME="r", CREATE="--reserved --network=n"), ["--runtime-version=r", "--reserved"]),
    ],
)
def test_settings_become_flags(world, environment, flags):
    assert launched(world, "tpu_queued.sh", "create", **environment).returncode == 0
    (given,) = asked(world, "gcloud")
    assert set(flags) <= set(given)


def test_without_a_command_the_script_explains_itself(world):
    told = launched(world, "tpu_queued.sh")
    assert (
        told.returncode == 2 and "NAME=stage2 ZONE=" in told.stdout and "set -" not in told.stdout
    )


FLAG = re.compile(r"--[a-z]+(?:-[a-z]+)*")


@pytest.mark.skipif(not shutil.which("gcloud"), reason="gcloud is not here")
@pytest.mark.parametrize("verb", ["create", "list", "describe", "ssh", "scp", "delete"])
def test_every_flag_is_one_that_gcloud_knows(tmp_path, verb):
    lines = (LAUNCH / "tpu_queued.sh").read_text().replace("\\\n", " ").splitlines()
    calls = [line for line in lines if f"queue {verb}" in line]
    used = {flag for line in calls for flag in FLAG.findall(line.split(f"queue {verb}")[1])}
    if verb == "create":
        used |= {"--node-id", "--node-count", "--node-prefix"}
    assert calls
    told = subprocess.run(
        ["gcloud", "compute", "tpus", "queued-resources", verb, "--help"],
        env=os.environ | {"CLOUDSDK_CONFIG": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert used | {"--zone", "--project"} <= set(FLAG.findall(told.stdout))


def test_a_local_run_keeps_its_programs_and_becomes_the_process(world):
    repository = world / "repository"
    (world / "plan").write_text("waiting\nwaiting\n")
    process = subprocess.Popen(
        [repository / "launch" / "local.sh", "train", *ARGUMENTS],
        cwd="/",  # wherever it is called from
        env=os.environ | {"HOME": str(world)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "training\n"
    process.send_signal(signal.SIGTERM)  # to the script's own process
    assert process.wait(timeout=600) == 75
    (given,) = asked(world, "python3")
    assert given == ["-m", "onediff_jax", "train", *ARGUMENTS]
    assert f"environment {world}/.cache/onediff_jax/programs" in (world / "asked").read_text()


@pytest.mark.parametrize(
    ("environment", "given"),
    [
        ({}, ".95 "),
        ({"XLA_CLIENT_MEM_FRACTION": ".5"}, ".5 "),
        ({"XLA_PYTHON_CLIENT_MEM_FRACTION": ".6"}, " .6"),  # JAX refuses both names at once
    ],
)
def test_a_gpu_gives_nearly_all_its_memory_unless_the_user_says_otherwise(
    world, monkeypatch, environment, given
):
    for name in ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
        monkeypatch.delenv(name, raising=False)
    assert launched(world, "local.sh", "train", plan="slow", **environment).returncode == 0
    assert f"memory {given}\n" in (world / "asked").read_text()


@pytest.mark.parametrize(("status", "requeued"), [(0, False), (75, True), (1, False)])
def test_under_slurm_a_job_that_was_stopped_goes_back_into_the_queue(world, status, requeued):
    done = launched(world, "slurm.sh", *ARGUMENTS, plan=str(status), SLURM_JOB_ID="17")
    assert done.returncode == status, done.stderr
    (given,) = asked(world, "srun")
    assert given[-len(ARGUMENTS) - 3 :] == ["launch/local.sh", "train", "--distributed", *ARGUMENTS]
    again = [line for line in (world / "asked").read_text().splitlines() if "scontrol" in line]
    assert again == (["scontrol requeue 17 "] if requeued else [])


def shell_in(file: pathlib.Path, word: str) -> str:
    """The indented block of a page that has a word."""
    blocks = re.findall(r"(?:^    .*\n)+", file.read_text(), re.MULTILINE)
    return next(block for block in blocks if word in block)


def applied_jobset(world: pathlib.Path) -> dict:
    """What the commands of the page give to kubectl."""
    commands = shell_in(LAUNCH / "README.md", "sed -e")
    subprocess.run(["bash", "-e", "-c", commands], cwd=world / "repository", check=True)
    return yaml.safe_load((world / "applied").read_text())


def test_the_commands_of_the_page_apply_a_jobset_with_everything_filled_in(world):
    jobset = applied_jobset(world)
    assert [given[0] for given in asked(world, "kubectl")] == ["apply", "logs", "delete"]
    assert "@" not in yaml.safe_dump(jobset)
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    chips = container["resources"]["limits"]["google.com/tpu"] * job["parallelism"]
    rows, columns = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
    assert chips == int(rows) * int(columns) == 256 and job["completions"] == job["parallelism"]
    assert (LAUNCH.parent / container["command"][0]).exists()
    assert container["args"][1:] == [
        "--workdir=gs://BUCKET/runs/stage2",
        "--config.root=gs://BUCKET",
    ]
    assert asked(world, "kubectl")[2][-1] == jobset["metadata"]["name"] == "stage2"


def test_the_image_holds_what_is_installed_on_workers_and_nothing_else():
    lines = (LAUNCH.parent / ".dockerignore").read_text().splitlines()
    kept = {line[1:] for line in lines if line.startswith("!")}
    assert "*" in lines and "**/__pycache__" in lines
    found = subprocess.run(
        ["bash", "-c", f"source <(sed -n '/^code()/,/^}}/p' {LAUNCH / 'tpu_queued.sh'}); code"],
        cwd=LAUNCH.parent, capture_output=True, text=True, check=True,
    ).stdout.split("\0")  # fmt: skip
    assert {name.split("/")[0] for name in found if name} >= kept
    for folder in ("weights", "caches", "runs", "artifacts", "shards", ".venv", ".git"):
        assert folder not in kept and not any(name.startswith(f"{folder}/") for name in found)


def test_a_stop_of_the_jobset_is_not_counted_as_a_failure(world):
    spec = applied_jobset(world)["spec"]
    job = spec["replicatedJobs"][0]["template"]["spec"]
    assert spec["failurePolicy"]["rules"][0]["onJobFailureReasons"] == ["PodFailurePolicy"]
    by_status = next(rule for rule in job["podFailurePolicy"]["rules"] if "onExitCodes" in rule)
    assert by_status["onExitCodes"]["values"] == [STOPPED] and by_status["action"] == "FailJob"
    assert job["template"]["spec"]["restartPolicy"] == "Never"  # else the policy is refused


def test_the_jobset_has_no_field_that_its_schema_does_not_know(world):
    schema = pytest.importorskip("kubeflow_trainer_api.models.jobset_v1alpha2_job_set")
    given = applied_jobset(world)
    known = schema.JobsetV1alpha2JobSet.from_dict(given).to_dict()
    assert known == given  # what is not known is left out


def test_slices_of_the_page_have_as_many_hosts_as_chips_need():
    rows = re.findall(
        r"^\| (v\d\w*-\d+) .*\| ([\dx]+) \| (\d+) \|$", (LAUNCH / "README.md").read_text(), re.M
    )
    assert len(rows) == 5
    for name, topology, hosts in rows:
        chips = int(np.prod([int(side) for side in topology.split("x")]))
        generation, count = name.split("-")
        cores = 1 if generation in ("v5e", "v6e") else 2  # that the name counts, of a chip
        assert chips * cores == int(count) and chips == 4 * int(hosts), name


def test_shellcheck_has_nothing_to_say():
    checker = shutil.which(
        "shellcheck", path=f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    )
    if not checker:
        pytest.skip("shellcheck is not here")
    scripts = [str(script) for script in LAUNCH.glob("*.sh")]
    assert len(scripts) >= 3
    told = subprocess.run([checker, *scripts], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stdout

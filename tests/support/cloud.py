"""Stand-ins for the programs that the scripts of launch/ ask, and the scripts run with them."""

import os
import pathlib
import shlex
import shutil
import subprocess
from subprocess import DEVNULL

import pytest
from places import ROOT

LAUNCH = ROOT / "launch"

# Stand-ins write down what they are asked.  That of gcloud keeps the states that the TPU goes
# through, one a look, and a home for each of two workers, where it runs what is sent to them.
RECORD = """#!/usr/bin/env bash
echo "$(printf '%q ' "$(basename "$0")" "$@")" >> "$WORLD/asked"
"""
GCLOUD = """
shift 3 # compute tpus queued-resources
case $1 in
  create)
    printf '%s\\n' CREATING WAITING_FOR_RESOURCES PROVISIONING ACTIVE > "$WORLD/states"
    mkdir -p "$WORLD"/workers/{0,1} ;;
  list)
    [[ -f $WORLD/states ]] || exit 0
    head -1 "$WORLD/states"
    [[ $(wc -l < "$WORLD/states") == 1 ]] || sed -i 1d "$WORLD/states" ;;
  scp) for home in "$WORLD"/workers/*; do cp "$2" "$home/${3#*:}"; done ;;
  ssh)
    for word in "$@"; do [[ $word != --command=* ]] || sent=${word#--command=}; done
    asked=()
    for home in "$WORLD"/workers/*; do
      (cd "$home" && HOME=$home exec bash -c "$sent") & asked+=($!)
    done
    for pid in "${asked[@]}"; do wait "$pid" || status=$?; done
    grep -q '^ACTIVE$' "$WORLD/states" || exit 255
    exit "${status:-0}" ;;
  delete) rm -rf "$WORLD/states" "$WORLD/workers" ;;
esac
"""
UV = """
[[ $1 == venv ]] || exit 0
mkdir -p .venv/bin
cp "$WORLD/bin/python3" .venv/bin/python
"""
# Training: each time it is started on a worker it does the next thing that the test wants.
PYTHON = """
count="$WORLD/started.$(basename "$HOME")"
echo >> "$count"
echo "environment $JAX_COMPILATION_CACHE_DIR" >> "$WORLD/asked"
echo "memory ${XLA_CLIENT_MEM_FRACTION:-} ${XLA_PYTHON_CLIENT_MEM_FRACTION:-}" >> "$WORLD/asked"
case $(sed -n "$(wc -l < "$count")p" "$WORLD/plan") in
  preempted)
    printf '%s\\n' ACTIVE SUSPENDING SUSPENDED > "$WORLD/states"
    kill -KILL 0 ;;
  waiting)
    trap 'echo saving; exit 75' TERM
    echo training
    while true; do sleep 0.05; done ;;
  stopped) exit 75 ;;
  slow) sleep 1 ;;
  failed) exit 1 ;;
esac
"""
SRUN = """
exit "$(cat "$WORLD/plan")"
"""
KUBECTL = """
[[ $1 != apply ]] || cat > "$WORLD/applied"
"""
# What a folder has: what git tracks, new code, and what lies there beside it.
TRACKED = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "onediff_jax/old.py")
TRACKED += ("configs/old.py", "tools/old.py", "docs/gone.md", "assets/small.json")
NEW = ("onediff_jax/new.py", "configs/new.py", "tools/new.py")
ELSEWHERE = ("runs/stage1/large", "weights/onediffusion/vae/config.json", "caches/mine/part")
ELSEWHERE += ("artifacts/scenes/large", "shards/mine/train", "notes.py", "model.safetensors")


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A folder with stand-ins on PATH and a repository, and what the scripts need to know."""
    stand_ins = {
        "gcloud": GCLOUD, "uv": UV, "python3": PYTHON, "srun": SRUN, "scontrol": "",
        "kubectl": KUBECTL, "sbatch": "",
    }  # fmt: skip
    (tmp_path / "bin").mkdir()
    for name, body in stand_ins.items():
        file = tmp_path / "bin" / name
        file.write_text(RECORD + body)
        file.chmod(0o755)
    repository = tmp_path / "repository"
    shutil.copytree(LAUNCH, repository / "launch")
    for name in (*TRACKED, *NEW, *ELSEWHERE):
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / name).touch()
    (repository / ".gitignore").write_text("/runs/\n")
    for command in ("init", "add"):
        arguments = [] if command == "init" else ["--", *TRACKED, "launch"]
        subprocess.run(["git", command, *arguments], cwd=repository, check=True, stdout=DEVNULL)
    (repository / "docs" / "gone.md").unlink()  # and git still tracks it
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("WORLD", str(tmp_path))
    for name, value in dict(NAME="stage2", ZONE="z", TPU="v3-256", POLL="0.1").items():
        monkeypatch.setenv(name, value)
    for name in ("PROJECT", "SPOT", "RUNTIME", "NODES", "CREATE", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("SLURM_SUBMIT_DIR", raising=False)
    return tmp_path


def launched(world: pathlib.Path, script: str, *arguments: str, plan: str = "", **environment):
    """A script of the repository, run to its end; `plan` is what training does at each start."""
    if plan:
        (world / "plan").write_text("\n".join(plan.split()) + "\n")
    program = world / "repository" / "launch" / script
    return subprocess.run(
        [program, *arguments],
        cwd=world / "repository",
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def asked(world: pathlib.Path, program: str) -> list[list[str]]:
    """The arguments that a stand-in was given, each time."""
    lines = (world / "asked").read_text().splitlines()
    return [shlex.split(line)[1:] for line in lines if line.split()[0] == program]


def verbs(world: pathlib.Path) -> list[str]:
    """What gcloud was asked to do with the TPU, without looks at it."""
    given = [arguments[3] for arguments in asked(world, "gcloud")]
    return [verb for verb in given if verb not in ("list", "ssh")]

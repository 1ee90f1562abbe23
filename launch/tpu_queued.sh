#!/usr/bin/env bash
# Trains on Cloud TPUs by queued resources, from a machine with gcloud:
#
#     NAME=stage2 ZONE=europe-west4-a TPU=v3-256 launch/tpu_queued.sh run \
#         --config configs/stage2_multitask.py --workdir gs://BUCKET/runs/stage2 \
#         --config.root=gs://BUCKET
#
# `run` does whatever comes next until training is done: creates the TPU, waits for it, installs,
# starts, follows, starts again after a stop, creates it anew after a preemption, and deletes it at
# the end.  It can be interrupted and repeated: training goes on without it.  Parts of it:
#
#     create   ask for the TPU                 follow   show what the run says until it ends
#     wait     until it is there               status   state of the TPU, and of the run on each worker
#     install  the code, on every worker       stop     save and end
#     doctor   check a run on every worker     delete   give the TPU back
#     start    train in the background
#
# What is installed is what git tracks, as it is in this folder, and new files of code and configs
# that it does not ignore; never weights, caches, shards or runs, which lie in the bucket.
#
# Settings: NAME, ZONE, TPU (v3-256, v4-256, v5e-256, v5p-128, v6e-256, ...); PROJECT; RUNTIME, the
# software version; SPOT=1 for preemptible capacity; NODES for several slices; CREATE for more flags
# of `queued-resources create`; JAX_COMPILATION_CACHE_DIR for the workers; POLL, seconds between looks.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# --- on this machine ---

queue() { gcloud compute tpus queued-resources "$@" --zone="$ZONE" ${PROJECT:+--project="$PROJECT"}; }

on_workers() { queue ssh "$NAME" --node=all --worker=all --batch-size=all --command="$1"; }

say() { echo "tpu_queued: $*" >&2; }

create() {
  local runtime
  case $TPU in
    v5e-*) runtime=v2-alpha-tpuv5-lite ;;
    v5p-*) runtime=v2-alpha-tpuv5 ;;
    v6e-*) runtime=v2-alpha-tpuv6e ;;
    *) runtime=tpu-ubuntu2204-base ;;
  esac
  local nodes=(--node-id="$NAME")
  [[ ${NODES:-1} == 1 ]] || nodes=(--node-count="$NODES" --node-prefix="$NAME")
  # shellcheck disable=SC2086 # CREATE holds several flags
  queue create "$NAME" --accelerator-type="${TPU/#v5e-/v5litepod-}" \
    --runtime-version="${RUNTIME:-$runtime}" "${nodes[@]}" ${SPOT:+--spot} ${CREATE:-}
}

# One word: ACTIVE when it is there, SUSPENDED after a preemption, nothing where there is no TPU.
state() { queue list --filter="name~/queuedResources/$NAME\$" --format="value(state.state)"; }

wait_for_tpu() {
  until [[ $(state) == ACTIVE ]]; do
    sleep "${POLL:-30}"
  done
}

# Names of the files to install, each ended by a zero byte.
code() {
  local folders=(configs launch onediff_jax tools) file
  if [[ -e .git ]]; then
    git ls-files -z --cached
    git ls-files -z --others --exclude-standard -- "${folders[@]}"
  else # a copy without its history
    find "${folders[@]}" setup.py pyproject.toml README.md LICENSE -type f -print0
  fi | while IFS= read -r -d '' file; do
    case $file in
      */__pycache__/* | *.egg-info/*) ;;
      *) [[ ! -e $file ]] || printf '%s\0' "$file" ;; # git lists those that were deleted, too
    esac
  done
}

install() {
  local archive
  archive=$(mktemp --suffix=.tar.gz)
  code | tar --null --files-from=- -czf "$archive" &&
    queue scp "$archive" "$NAME:onediff_jax.tar.gz" --node=all --worker=all --batch-size=all &&
    on_workers "mkdir -p onediff_jax && tar -xzf onediff_jax.tar.gz -C onediff_jax &&
      onediff_jax/launch/tpu_queued.sh install_here"
}

# A command of the installed folder with its arguments, in the words of a remote shell.
remotely() {
  local cache=${JAX_COMPILATION_CACHE_DIR:-}
  on_workers "${cache:+JAX_COMPILATION_CACHE_DIR=$(printf %q "$cache") }onediff_jax/launch/$(printf '%q ' "$@")"
}

doctor() { remotely local.sh doctor --distributed "$@"; }

start() { remotely tpu_queued.sh start_here "$@"; }

follow() { on_workers "onediff_jax/launch/tpu_queued.sh follow_here"; }

stop() { on_workers "onediff_jax/launch/tpu_queued.sh stop_here"; }

status() {
  echo "TPU: $(state)"
  on_workers "onediff_jax/launch/tpu_queued.sh tell_here || echo told absent"
}

delete() { queue delete "$NAME" --force --quiet; }

# What the workers tell of the run, in one word: of those that are least far.
told() {
  local words word
  words=$(status) || return
  for word in running absent ready failed stopped finished; do
    if grep -q "^told $word" <<< "$words"; then
      echo "$word"
      return
    fi
  done
}

run() {
  local now before=
  while true; do
    now=$(state) || now=unknown
    [[ $now == "$before" ]] || say "$NAME is ${now:-not there}"
    before=$now
    case $now in
      "") create && continue ;;
      SUSPENDED) say "$NAME was preempted" && delete && continue ;;
      FAILED) queue describe "$NAME" && return 1 ;;
      ACTIVE)
        # Workers that cannot be reached may be about to be preempted: the next look tells.
        case $(told) in
          running) follow && continue ;;
          absent) install && continue ;;
          ready) start "$@" ;;
          stopped) say "stopped, and goes on" && start "$@" ;;
          failed) say "training failed; $NAME is still there, and paid for" && return 1 ;;
          finished) say "training is done" && delete && return ;;
        esac
        ;;
    esac || true
    sleep "${POLL:-30}"
  done
}

# --- on a worker; run/ has the process, what it says, and its status once it has ended ---

install_here() {
  command -v uv > /dev/null || python3 -m pip install --quiet --user uv
  export PATH="$HOME/.local/bin:$PATH"
  uv venv --quiet --allow-existing --python 3.12 .venv
  uv pip install --quiet --python .venv/bin/python --editable '.[tpu,gcs,t5]'
  touch .venv/installed
}

start_here() {
  mkdir -p run
  rm -f run/status
  nohup setsid launch/tpu_queued.sh train_here "$@" > run/log 2>&1 < /dev/null &
  echo $! > run/pid
}

train_here() {
  trap : TERM # training answers it, and this script writes down how it ended
  local status=0
  launch/local.sh train --distributed "$@" || status=$?
  echo "$status" > run/status
}

follow_here() { tail -n 50 --pid="$(< run/pid)" -F run/log; }

stop_here() { kill -TERM -- "-$(< run/pid)"; }

tell_here() {
  if [[ -f run/status ]]; then
    case $(< run/status) in
      0) echo told finished ;;
      75) echo told stopped ;;
      *) echo told failed "$(< run/status)" "$HOSTNAME" ;;
    esac
  elif [[ -f run/pid ]] && kill -0 "$(< run/pid)" 2> /dev/null; then
    echo told running
  elif [[ -f .venv/installed ]]; then
    echo told ready
  else
    echo told absent
  fi
}

case ${1:-} in
  wait) wait_for_tpu ;;
  create | install | doctor | start | follow | status | stop | delete | run | *_here) "$@" ;;
  *) sed -n '2,/^set/s/^# \{0,1\}//p' "$0" && exit 2 ;;
esac

#!/usr/bin/env bash
# Runs a command of onediff_jax in several processes on this machine's CPU, as a pod does on many:
#
#     launch/processes.sh 2 -- train --config configs/scenes_tiny.py --workdir runs/two
#
# Every line begins with the number of its process.  When one fails, the others are stopped, since
# they would wait for it.  Ctrl-C and SIGTERM are passed on: all save, and end with status 75.
set -euo pipefail

if [[ ! ${1:-} =~ ^[1-9][0-9]*$ || ${2:-} != -- || -z ${3:-} ]]; then
  echo "usage: launch/processes.sh NUMBER -- COMMAND [OPTION ...]" >&2
  exit 2
fi
number=$1 command=$3
shift 3
local=$(dirname "${BASH_SOURCE[0]}")/local.sh

free='import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'
JAX_COORDINATOR_ADDRESS="localhost:$(python3 -c "$free")"
export JAX_COORDINATOR_ADDRESS JAX_NUM_PROCESSES=$number
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
# Processes must meet in one order: two that wait for each other at different sums wait for ever.
export XLA_FLAGS="${XLA_FLAGS:-} --xla_cpu_enable_concurrency_optimized_scheduler=false"

pids=()
trap '((${#pids[@]} == 0)) || kill -KILL "${pids[@]}" 2> /dev/null || true' EXIT
for ((i = 0; i < number; i++)); do
  JAX_PROCESS_ID=$i "$local" "$command" --distributed "$@" > >(sed -u "s/^/[$i] /") 2>&1 &
  pids[i]=$!
done
trap 'kill -TERM "${pids[@]}" 2> /dev/null || true' INT TERM

status=0
while ((${#pids[@]} > 0)); do
  ended=0
  wait -n -p pid "${pids[@]}" || ended=$?
  [[ ${pid:-} ]] || continue # a signal came, and has been passed on
  for i in "${!pids[@]}"; do
    [[ ${pids[i]} == "$pid" ]] && process=$i && unset "pids[i]"
  done
  if ((ended != 0)); then
    status=$ended
  fi
  if ((ended != 0 && ended != 75 && ${#pids[@]} > 0)); then
    echo "processes.sh: process $process ended with status $ended; the others are stopped" >&2
    break
  fi
done
exit "$status"

#!/usr/bin/env bash
# Runs a command of onediff_jax on this machine, with all its devices.
#
#     launch/local.sh train --config configs/scenes_tiny.py --workdir runs/scenes_tiny
#
# Ctrl-C or SIGTERM saves and ends with status 75; the same command goes on.  All other scripts here
# start their processes by this one, with --distributed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Compiled programs are kept: a restart skips minutes of compilation.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$HOME/.cache/onediff_jax/programs}"

python=.venv/bin/python
[[ -x $python ]] || python=python3
exec "$python" -m onediff_jax "$@" # itself, so that signals reach it

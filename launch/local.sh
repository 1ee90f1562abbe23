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

# On GPUs JAX takes three quarters of the memory by default.  Both of its names for the setting, the
# older one second, are the user's; to set both is an error.
if [[ -z ${XLA_CLIENT_MEM_FRACTION:-}${XLA_PYTHON_CLIENT_MEM_FRACTION:-} ]]; then
  export XLA_CLIENT_MEM_FRACTION=.95
fi

python=.venv/bin/python
[[ -x $python ]] || python=python3
exec "$python" -m onediff_jax "$@" # itself, so that signals reach it

#!/usr/bin/env bash
# Trains on GPUs under Slurm, a process for every GPU; from the repository's root:
#
#     sbatch [--nodes=4 ...] launch/slurm.sh --config configs/NAME.py --workdir DIR/runs/NAME \
#         --config.root=DIR
#
# DIR lies where all nodes see it, or is gs://BUCKET; relative paths of the config begin in it.
# Before its time is over, or when it is preempted, the job saves, goes back into the queue and
# resumes from there.
#SBATCH --job-name=onediff_jax
#SBATCH --nodes=2
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"
trap : TERM # the processes answer it, and this script waits for them

status=0
# The first process to end must not take the others along: they may still be writing.
srun --kill-on-bad-exit=0 --wait=300 launch/local.sh train --distributed "$@" || status=$?
if [[ $status == 75 ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"

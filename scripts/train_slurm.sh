#!/usr/bin/env bash
# Train under Slurm, on one machine or several, until the run is complete (docs/launching.md):
#
#   sbatch --nodes=2 scripts/train_slurm.sh --config configs/pixellm_7b.json --config configs/hardware/8x80gb.json ...
#
# From the repository's folder. Every option of sbatch may be given; all arguments after the script go to train_ds.py.
# PROCESSES_PER_NODE is the number of GPUs unless it is set; PYTHON is the interpreter, by default .venv/bin/python.
#
#SBATCH --job-name=pixellm
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=48
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=pixellm-%j.log
set -uo pipefail

PYTHON=${PYTHON:-.venv/bin/python}
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# Jobs that share a machine must not share a port.
port=$((20000 + SLURM_JOB_ID % 20000))

# Slurm sends USR1 three minutes before the time limit, to this shell alone. srun hands SIGTERM on, the run saves and
# ends, and the job goes back to the queue: the same command goes on. SIGTERM comes from scancel, or with a preemption
# after which Slurm itself requeues.
requeue=no
trap 'requeue=yes; kill -TERM "$!"' USR1
trap 'kill -TERM "$!"' TERM

# One torchrun on each machine; they meet at the first one, and it does not matter which of them is up first.
srun --kill-on-bad-exit=1 ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} \
  "$PYTHON" -m torch.distributed.run \
  --nnodes="$SLURM_NNODES" --nproc_per_node="${PROCESSES_PER_NODE:-gpu}" \
  --rdzv_id="$SLURM_JOB_ID" --rdzv_backend=c10d --rdzv_endpoint="$first:$port" \
  train_ds.py "$@" &

# A signal ends wait, not srun.
wait "$!"
code=$?
while kill -0 "$!" 2>/dev/null; do
  wait "$!"
  code=$?
done

if [ "$requeue" = yes ] && [ "$code" -ne 0 ]; then
  echo "the time limit is near: job $SLURM_JOB_ID goes back to the queue, and the same command goes on"
  exec scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"

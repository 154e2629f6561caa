#!/bin/bash
# The loop on several machines under Slurm: sbatch docs/slurm.sh, from the project's directory.
# What follows the script's name goes to train.py: sbatch docs/slurm.sh --set machine.shard=machine
#SBATCH --job-name=self-rewarding
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1        # one torchrun on each machine; it starts a rank for each card
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --requeue                  # a job that is begun again goes on where it stopped
set -euo pipefail

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun .venv/bin/torchrun \
  --nnodes "$SLURM_NNODES" --nproc-per-node "$SLURM_GPUS_ON_NODE" \
  --rdzv-backend c10d --rdzv-endpoint "$first:29500" --rdzv-id "$SLURM_JOB_ID" \
  train.py --preset paper --model models/Llama-2-7b-hf \
  --prompt-model models/Llama-2-7b-chat-hf --seed-data seed-data/oasst --run-dir runs/paper "$@"

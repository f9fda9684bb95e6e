#!/bin/bash
# Serves a model. `ollampi slurm render` wrote this for sbatch.
#SBATCH --job-name=ollampi
#SBATCH --comment=ollampi
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=1
#SBATCH --output=ollampi-%j.log
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
#SBATCH --no-kill
#SBATCH --requeue
exec ollampi slurm job model=demo

#!/bin/bash
# Serves a model. `ollampi slurm render` wrote this for sbatch.
#SBATCH --job-name=ollampi
#SBATCH --comment=ollampi
#SBATCH --nodes=2
#SBATCH --ntasks=2
#SBATCH --cpus-per-task=1
#SBATCH --time=8:00:00
#SBATCH --array=0-2
#SBATCH --output=ollampi-%A_%a.log
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@200
#SBATCH --no-kill
#SBATCH --requeue
exec ollampi slurm job model=demo

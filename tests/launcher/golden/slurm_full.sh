#!/bin/bash
# Serves a model. `ollampi slurm render` wrote this for sbatch.
#SBATCH --job-name="my model"
#SBATCH --comment=ollampi
#SBATCH --nodes=2
#SBATCH --ntasks=8
#SBATCH --cpus-per-task=4
#SBATCH --gpus-per-node=4
#SBATCH --mem=64G
#SBATCH --time=1-00:00:00
#SBATCH --partition=gpu,long
#SBATCH --account=proj_1
#SBATCH --qos=high
#SBATCH --constraint="a100&ib"
#SBATCH --exclude="n[1-3],m7"
#SBATCH --output="/scratch/my logs/%x-%j.log"
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
#SBATCH --no-kill
#SBATCH --no-requeue
export OLLAMPI_ENDPOINTS=/shared/ep
exec /opt/py/bin/python -m ollampi slurm job 'model=/models/My Model' quantize=q4

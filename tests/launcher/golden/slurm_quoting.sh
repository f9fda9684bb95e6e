#!/bin/bash
# Serves a model. `ollampi slurm render` wrote this for sbatch.
#SBATCH --job-name="it's \"a\" \#1 $(id) pack\job é"
#SBATCH --comment=ollampi
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=1
#SBATCH --constraint="[r1|r2]*(2)"
#SBATCH --output="logs/50%% \"q\" 'p' \#%j.log"
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
#SBATCH --no-kill
#SBATCH --requeue
export OLLAMPI_ENDPOINTS='/shared/$x'
exec '/home/a b/ollampi' slurm job 'model=it'"'"'s $(id) `id` "q" \ ~ #é' $'trace=a\012b\015\012\011c' --config '~/my file.yaml' ''

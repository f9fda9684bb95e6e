#!/bin/bash
# Measure a point of a sweep in a Slurm job; benchmarks/sweep.py slurm=true submits it with its ranks and its command:
# sbatch [options] slurm/sweep.sh PYTHON benchmarks/sweep.py only=[POINT] ...
#SBATCH --job-name=ollampi-sweep
#SBATCH --time=01:00:00
#SBATCH --signal=B:TERM@60
"$@" &
point=$!
# wait returns early at a signal; the server goes with the point, whose record says nothing then
trap 'kill -TERM $point' TERM INT
while kill -0 $point 2>/dev/null; do
    wait $point
done
wait $point # bash remembers how it ended

#!/bin/bash
# Serve a model in a Slurm job: sbatch --ntasks=4 slurm/serve.sh model=/path [key=value ...]
#SBATCH --job-name=ollampi
#SBATCH --ntasks=4
#SBATCH --cpus-per-task=1
#SBATCH --time=01:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --output=ollampi-%j.log
set -u
cd "${SLURM_SUBMIT_DIR:-.}" || exit 1
ollampi=$(command -v ollampi || echo "$PWD/.venv/bin/ollampi")
echo "from your machine: ssh -N -L 11434:127.0.0.1:11434 -J LOGIN_NODE $(hostname)"
"$ollampi" launch -n "${SLURM_NTASKS:-1}" "$@" &
server=$!
# launch and mpirun pass USR1 on to the ranks, which then finish what runs and leave; wait returns early at a signal.
trap 'kill -USR1 $server' USR1
trap 'kill -TERM $server' TERM INT
while kill -0 $server 2>/dev/null; do
    wait $server
done
wait $server # bash remembers how it ended

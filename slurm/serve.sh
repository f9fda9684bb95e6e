#!/bin/bash
# Serve a model in a Slurm job (docs/slurm.md):  sbatch --ntasks=4 slurm/serve.sh model=/path [key=value ...]
#SBATCH --job-name=ollampi
#SBATCH --comment=ollampi
#SBATCH --time=01:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --no-kill
#SBATCH --open-mode=append
#SBATCH --output=ollampi-%j.log
cd "${SLURM_SUBMIT_DIR:-.}" || exit 1
for python in "${OLLAMPI_PYTHON:-}" "${VIRTUAL_ENV:-}/bin/python" "$PWD/.venv/bin/python" "$(command -v python3)"; do
    # exec: Slurm's signals reach the program that starts the ranks and watches them
    "$python" -c 'import ollampi' 2>/dev/null && exec "$python" -m ollampi.launcher.slurm_job "$@"
done
echo "ollampi: no python with ollampi: activate its environment before sbatch, or name it with OLLAMPI_PYTHON=/path/python" >&2
exit 1

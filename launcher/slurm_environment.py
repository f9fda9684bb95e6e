"""Choose which variables of the environment a Slurm job gets: those that programs need to run, and ours.

Keys and passwords that lie in an environment stay where they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

_NAMES = frozenset(
    {
        *("CONDA_DEFAULT_ENV", "CONDA_PREFIX", "HF_HOME", "HOME", "LANG", "LANGUAGE"),
        *("LIBRARY_PATH", "LOADEDMODULES", "LOGNAME", "MANPATH", "PATH", "PKG_CONFIG_PATH"),
        *("PWD", "PYTHONHOME", "PYTHONNOUSERSITE", "PYTHONPATH", "SHELL", "SLURM_CLUSTERS"),
        *("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT", "TMPDIR", "TZ", "USER"),
        *("VIRTUAL_ENV", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "_LMFILES_"),
    }
)
_PREFIXES = (
    *("CUDA_", "FI_", "GOMP_", "HYDRA_", "HWLOC_", "I_MPI_", "KMP_", "LC_"),
    *("LD_", "LMOD_", "MKL_", "MODULE", "MPI4PY_", "MPICH_", "MPIR_", "NCCL_"),
    *("NUMEXPR_", "OLLAMA_", "OLLAMPI_", "OMP_", "OMPI_", "OPAL_", "OPENBLAS_", "PMIX_"),
    *("PRTE_", "PSM2_", "PSM3_", "ROCM_", "ROCR_", "SBATCH_", "SPANK_", "TORCH_"),
    *("UCX_", "__LMOD", "__MODULES"),
)
_SECRET = ("API_KEY", "TOKEN", "SECRET", "PASSWORD", "PASSWD", "CREDENTIAL")
# Variables that sbatch puts before the lines of a script, by the option that such a line gives.
_SBATCHS = {
    "array": ("SBATCH_ARRAY_INX",),
    "cpus-per-task": ("SBATCH_CPUS_PER_TASK", "SBATCH_CPUS_PER_GPU"),
    "gpus-per-node": ("SBATCH_GPUS_PER_NODE", "SBATCH_GPUS", "SBATCH_GPUS_PER_TASK", "SBATCH_GRES"),
    "mem": ("SBATCH_MEM_PER_NODE", "SBATCH_MEM_PER_CPU", "SBATCH_MEM_PER_GPU"),
    "no-requeue": ("SBATCH_REQUEUE", "SBATCH_NO_REQUEUE"),
    "requeue": ("SBATCH_REQUEUE", "SBATCH_NO_REQUEUE"),
    "time": ("SBATCH_TIMELIMIT", "SBATCH_TIME"),
}
# What would change how sbatch takes the script, and the address of the server that this user talks to now.
_NEVER = frozenset({"SBATCH_EXPORT", "SBATCH_WAIT", "SBATCH_GET_USER_ENV", "OLLAMA_HOST"})


def passed_on(environ: Mapping[str, str], options: Iterable[str] = ()) -> dict[str, str]:
    """Return the variables that sbatch and the job get.

    options: those that the script has lines for, which count more than a user's own defaults in SBATCH_… variables.
    """
    given = {name for option in options for name in (*_SBATCHS.get(option, ()), _variable(option))}
    return {name: value for name, value in environ.items() if _wanted(name) and name not in given | _NEVER}


def _variable(option: str) -> str:
    return f"SBATCH_{option.upper().replace('-', '_')}"


def _wanted(name: str) -> bool:
    if name in _NAMES:
        return True
    return name.startswith(_PREFIXES) and not any(word in name for word in _SECRET)

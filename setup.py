"""Build the native kernels: a shared library that Python loads by ctypes; without a compiler the package does without.

All else about the package is in setup.cfg.
"""

from pathlib import Path

from setuptools import Extension, setup

SOURCES = Path("kernels/cpu")

setup(
    ext_modules=[
        Extension(
            "ollampi.kernels.cpu.native",
            sources=sorted(str(path) for path in SOURCES.glob("*.c")),
            depends=sorted(str(path) for path in SOURCES.glob("*.h")),
            extra_compile_args=["-std=c11", "-O3", "-fopenmp", "-ffp-contract=off", "-Wall", "-Wextra"],
            extra_link_args=["-fopenmp"],  # the library that torch has loaded by then serves both
            libraries=["m"],
            py_limited_api=True,  # it knows nothing of Python: one file serves every version
            optional=True,
        )
    ]
)

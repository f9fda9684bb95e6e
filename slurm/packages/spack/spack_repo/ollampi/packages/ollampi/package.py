"""Spack's recipe of ollampi, built from a checkout: `spack develop --path CHECKOUT ollampi@0.1.0`."""

from spack_repo.builtin.build_systems.python import PythonPackage

from spack.package import *


class Ollampi(PythonPackage):
    """One MPI job serves a language model: tensor-parallel ranks behind Ollama's API."""

    license("MIT")

    version("0.1.0")

    variant("cuda", default=False, description="Compile the kernels of GPUs through cupy")

    depends_on("c", type="build")
    depends_on("python@3.11:", type=("build", "run"))
    depends_on("py-setuptools@70:", type="build")
    depends_on("mpi", type="run")

    with default_args(type="run"):
        depends_on("py-click@8.1:")
        depends_on("py-flask@3.1.3:")
        depends_on("py-gguf@0.19:")
        depends_on("py-gunicorn@27:")
        depends_on("py-huggingface-hub@2:")
        depends_on("py-hydra-core@1.3.2:")
        depends_on("py-jinja2@3.1.6:")
        depends_on("py-llguidance@1.9.1:")
        depends_on("py-mpi4py@4.1:")
        depends_on("py-msgpack@1.1:")
        depends_on("py-numpy@2.0:")
        depends_on("py-prometheus-client@0.26:")
        depends_on("py-prompt-toolkit@3.0:")
        depends_on("py-pydantic@2.14:")
        depends_on("py-safetensors@0.5:")
        depends_on("py-tokenizers@0.21:")
        depends_on("py-torch@2.13.0")
        depends_on("py-urllib3@2.5:")
        depends_on("py-werkzeug@3.1.6:")
        depends_on("py-zstandard@0.25:")
        depends_on("py-cupy@14.2:", when="+cuda")

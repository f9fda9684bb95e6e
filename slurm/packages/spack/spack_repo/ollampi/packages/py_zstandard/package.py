"""Spack's recipe of zstandard, for sites whose builtin repository has none, or an older one."""

from spack_repo.builtin.build_systems.python import PythonPackage

from spack.package import *


class PyZstandard(PythonPackage):
    """Bindings of the Zstandard compression library, which comes with them."""

    homepage = "https://github.com/indygreg/python-zstandard"
    pypi = "zstandard/zstandard-0.25.0.tar.gz"

    license("BSD-3-Clause")

    version("0.25.0", sha256="7713e1179d162cf5c7906da876ec2ccb9c3a9dcbdffef0cc7f70c3667a205f0b")

    depends_on("c", type="build")
    depends_on("python@3.9:", type=("build", "run"))
    depends_on("py-setuptools@77:", type="build")
    depends_on("py-packaging", type="build")
    depends_on("py-cffi@1.17:", type="build")

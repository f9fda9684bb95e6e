"""Spack's recipe of gunicorn, for sites whose builtin repository has none, or an older one."""

from spack_repo.builtin.build_systems.python import PythonPackage

from spack.package import *


class PyGunicorn(PythonPackage):
    """A WSGI server in Python."""

    homepage = "https://gunicorn.org"
    pypi = "gunicorn/gunicorn-27.0.1.tar.gz"

    license("MIT")

    version("27.0.1", sha256="b1514965361c8b7e8107a80aa2a92636878df1ccfac6dd204a676426e04d9e3e")

    depends_on("python@3.10:", type=("build", "run"))
    depends_on("py-setuptools@61.2:", type="build")

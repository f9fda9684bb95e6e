"""Look at the paths that a user gives for models, and say what is wrong with one."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from ollampi.api.names import Name, path_name
from ollampi.api.store.catalog import is_model
from ollampi.launcher.config import CONF
from ollampi.mpiruntime.errors import ConfigError, ModelError, quoted, short

_A_MODEL = (
    "a model is a folder with config.json, its tokenizer and *.safetensors, as Hugging Face has them, or a *.gguf file"
)


def model_path(given: str) -> Path | None:
    """Return the model folder or GGUF file at a path, or None where there is none; the name is then looked up."""
    path = _absolute(given)
    return path if is_model(path) else None


def find_model(given: str) -> Path:
    """Return the folder of a model by its path, that of its config.json, or the name of one that ships.

    Raise ModelError where there is none.
    """
    path, shipped = Path(os.path.expanduser(given)), CONF / "models"
    found = model_path(str(path.parent if path.name == "config.json" else path)) or model_path(str(shipped / given))
    if found is None:
        raise ModelError(no_model(given, [path.name for path in shipped.iterdir()]))
    return found


def folders(given: Sequence[str]) -> list[Path]:
    """Return the configured folders of models; raise ConfigError for one that is not there."""
    paths = [_absolute(folder) for folder in given]
    for path in paths:
        if not os.path.isdir(path):
            raise ConfigError(f"model_folders names {short(str(path))}, which is no folder; write several as [/a,/b]")
    return paths


def served_name(folder: Path) -> Name:
    """Return the name under which clients find the model in a folder; raise ModelError where it can have none."""
    name = path_name(folder)
    if name is None:
        raise ModelError(
            f"no model can be called {folder.name!r}, as the folder {folder} is: "
            "give the path of a link to it, with a name of A-Z, a-z, 0-9, '_', '.', '-'"
        )
    return name


def no_model(given: str, names: Sequence[str]) -> str:
    """Return what is wrong where `given` is neither a model folder nor among the names of the models."""
    path = _absolute(given)
    if os.path.isfile(path):
        return f"{path} is a file: {_A_MODEL}; give the path of one"
    if os.path.isdir(path):
        return f"the folder {path} has no config.json that can be read: {_A_MODEL}{_models_below(path)}"
    looked_at = f" (there is no folder {short(str(path))})" if "/" in given else ""
    return (
        f"model {quoted(given)} not found{looked_at}, and nothing is downloaded; "
        f"give the path of a model folder, or one of: {', '.join(names) or 'none'}"
    )


def _models_below(folder: Path) -> str:
    """Return a hint where a folder holds model folders."""
    try:
        below = sorted(str(path.parent) for path in folder.glob("*/config.json"))
    except OSError:
        below = []
    if not below:
        return ""
    one, all_of_them = shlex.quote(f"model={below[0]}"), shlex.quote(f"model_folders={folder}")
    return f"; try {one}, or {all_of_them} to serve all models there by name"


def _absolute(given: str) -> Path:
    """Return a path with its home and dots resolved but not its links: a link may be there to give a model its name."""
    return Path(os.path.abspath(os.path.expanduser(given)))

"""Make the request of `create` from a Modelfile, and bring the files that it names to the server."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from ollampi.launcher.client import Client, Json
from ollampi.launcher.model_files import adapter_files, digest, model_files, pieces
from ollampi.launcher.modelfile import MAX_BYTES, Line, Modelfile, decode, parse
from ollampi.mpiruntime.errors import ConfigError, OllampiError

_PATHS = ("/", "./", "../", "~")
_SUFFIXES = (".gguf", ".safetensors", ".bin", ".pt", ".pth")
_NONE = "no Modelfile or safetensors files found in {}: write a Modelfile, or name one with -f"

Note = Callable[[Json], None]


def read_modelfile(given: str | None, stdin: Callable[[], bytes]) -> tuple[Modelfile, Path]:
    """Return what a Modelfile says, and the folder that its paths are relative to; `-` is the standard input.

    Without a name it is ./Modelfile, or where there is none the model of this folder. Raise ConfigError.
    """
    path = Path(given or "Modelfile")
    if given is None and not path.exists():
        try:
            model_files(Path.cwd())
        except OllampiError as error:
            raise ConfigError(_NONE.format(Path.cwd())) from error
        return parse("FROM ."), Path.cwd()
    try:
        if given == "-":
            data, folder = stdin(), Path.cwd()
        else:
            with path.open("rb") as file:
                data, folder = file.read(MAX_BYTES + 1), path.resolve().parent
    except FileNotFoundError as error:
        raise ConfigError(f"specified Modelfile wasn't found: there is no {given}") from error
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from error
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path} has more than {MAX_BYTES} bytes; name files of weights with FROM")
    try:
        return parse(decode(data)), folder
    except ConfigError as error:
        raise ConfigError(f"{path if given != '-' else 'standard input'}: {error}") from error


def request(client: Client, modelfile: Modelfile, folder: Path, note: Note) -> Json:
    """Return the fields of /api/create, once the server has all files; `note` takes progress objects."""
    note({"status": "gathering model components"})
    found: dict[str, dict[str, Path]] = {"files": {}, "adapters": {}}
    fields: Json = dict(modelfile.fields)
    for line in modelfile.sources:
        try:
            named = _source(line, folder)
        except OllampiError as error:
            raise ConfigError(f"line {line.number}: {error}") from error
        if isinstance(named, str):
            if "from" in fields:
                raise ConfigError(f"line {line.number}: FROM {named} comes after FROM {fields['from']}; keep one")
            fields["from"] = named
            continue
        place = found["adapters" if line.command == "ADAPTER" else "files"]
        twice = next((name for name in named if name in place), None)
        if twice:
            raise ConfigError(f"line {line.number}: {line.value} has a second file called {twice}; rename one of them")
        place.update(named)
    if "from" in fields and found["files"]:
        raise ConfigError(f"FROM {fields['from']} and the files of another FROM are two models; keep one")
    for field, files in found.items():
        if files:
            fields[field] = {name: _bring(client, path, note) for name, path in files.items()}
    return fields


def _source(line: Line, folder: Path) -> dict[str, Path] | str:
    """Return the files that a FROM or ADAPTER names, or the name of a model; raise OllampiError."""
    try:
        path = folder / Path(line.value).expanduser()
        exists = path.exists()
    except (RuntimeError, OSError, ValueError) as error:  # no such user, a name that no file can have
        raise ConfigError(f"{line.command} {line.value[:80]!r} is no path: {error}") from error
    if exists:
        return adapter_files(path) if line.command == "ADAPTER" else model_files(path)
    looks_so = line.value.startswith(_PATHS) or line.value in (".", "..") or line.value.lower().endswith(_SUFFIXES)
    if looks_so or line.command == "ADAPTER":
        raise ConfigError(f"{line.command} {line.value}: there is no file or folder {path}")
    return line.value


def _bring(client: Client, file: Path, note: Note) -> str:
    """Return the digest of a file that the server has now."""
    known, size = digest(file, partial(_told, note, f"reading {file.name}", str(file)))
    if client.has(f"/api/blobs/{known}"):
        note({"status": f"using existing file {known}"})
        return known
    told = partial(_told, note, f"copying file {known}", known)
    client.upload(f"/api/blobs/{known}", pieces(file, size, told), size)
    return known


def _told(note: Note, status: str, key: str, completed: int, total: int) -> None:
    note({"status": status, "digest": key, "completed": completed, "total": total})

"""Read model names: [host/][namespace/]model[:tag], compared without regard to case."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

DEFAULT_HOST = "registry.ollama.ai"
DEFAULT_NAMESPACE = "library"
DEFAULT_TAG = "latest"
MAX_NAME_CHARS = 600
GGUF = ".gguf"
_PART_OF = re.compile(r"-\d{5}-of-\d{5}(?=\.gguf$)")
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}")


@dataclass(frozen=True)
class Name:
    """A model's full name in its parts."""

    host: str
    namespace: str
    model: str
    tag: str

    @property
    def short(self) -> str:
        """Return the name as clients see it: model:tag, with host and namespace only where they are not the default."""
        text = f"{self.model}:{self.tag}"
        if self.host != DEFAULT_HOST:
            return f"{self.host}/{self.namespace}/{text}"
        return text if self.namespace == DEFAULT_NAMESPACE else f"{self.namespace}/{text}"

    @property
    def full(self) -> str:
        """Return the name with every part, as some error texts show it."""
        return f"{self.host}/{self.namespace}/{self.model}:{self.tag}"

    @property
    def key(self) -> str:
        """Return what two equal names have in common."""
        return self.full.lower()


def parse_name(text: str) -> Name | None:
    """Return the parts of a name with the defaults filled in, or None where no model can have that name."""
    if len(text) > MAX_NAME_CHARS:
        return None
    text = re.sub(r"^https?://", "", text)  # as copied from a browser
    *places, last = text.split("/")
    model, colon, tag = last.partition(":")
    if len(places) > 2:
        return None
    namespace = places[-1] if places else DEFAULT_NAMESPACE
    host = places[0] if len(places) == 2 else DEFAULT_HOST
    parts = (namespace, model, tag if colon else DEFAULT_TAG)
    if not _HOST.fullmatch(host) or not all(_PART.fullmatch(part) for part in parts):
        return None
    return Name(host, *parts)


def path_name(path: Path) -> Name | None:
    """Return the name of the model in a folder or a GGUF file; of one in parts they share it."""
    stem = _PART_OF.sub("", path.name) if path.name.endswith(GGUF) else path.name
    return folder_name(stem.removesuffix(GGUF))


def folder_name(folder: str) -> Name | None:
    """Return the name of the model in a folder called `folder`; NAME or NAME:TAG, other characters become '-'."""
    return parse_name(re.sub(r"[^A-Za-z0-9_.:-]", "-", folder.strip()).strip(".-")[:80])

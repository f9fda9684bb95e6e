"""Say what the bodies of the routes hold that change the model store."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, WithJsonSchema

from ollampi.api.wires.body import Body
from ollampi.api.wires.ollama_bodies import Named, Objects

_TEXTS = {"type": ["string", "array"], "items": {"type": "string"}}


class CreateBody(Named):
    """POST /api/create; draft models are given when the server starts, renderers and parsers by the template."""

    from_: str = Field(default="", alias="from")
    files: dict[str, str] | None = None
    adapters: dict[str, str] | None = None
    draft_files: dict[str, str] | None = None
    template: str = ""
    license: Annotated[Any, WithJsonSchema(_TEXTS)] = None
    system: str = ""
    parameters: dict[str, Any] = {}
    messages: Objects = []
    quantize: str = ""
    quantization: str = ""
    stream: bool = True


class CopyBody(Body):
    """POST /api/copy."""

    source: str = ""
    destination: str = ""


class TransferBody(Named):
    """POST /api/push; username and password are read by nobody, as in Ollama."""

    insecure: bool = False
    stream: bool = True
    username: str = ""
    password: str = ""


class PullBody(TransferBody):
    """POST /api/pull; `from`, which is ours, is the URL of another server of this kind to pull from."""

    from_: str = Field(default="", alias="from")

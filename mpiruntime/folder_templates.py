"""Find the chat templates of a Hugging Face model folder."""

from __future__ import annotations

from pathlib import Path

from ollampi.mpiruntime.json_file import small_file

TEMPLATE_FILE = "chat_template.jinja"
TEMPLATES_FOLDER = "additional_chat_templates"


def folder_templates(path: Path, configured: object) -> dict[str, str]:
    """Return the templates of a folder by name; a file goes before an entry of the same name in the config.

    configured: chat_template of tokenizer_config.json. Raise ModelError, OSError.
    """
    found: dict[str, object] = {}
    if isinstance(configured, str):
        found["default"] = configured
    elif isinstance(configured, list):  # [{"name": "default", "template": ...}, ...]
        entries = [entry for entry in configured if isinstance(entry, dict) and isinstance(entry.get("name"), str)]
        found = {entry["name"]: entry.get("template") for entry in entries}
    if (path / TEMPLATE_FILE).is_file():
        found["default"] = small_file(path / TEMPLATE_FILE).decode(errors="replace")
    for file in sorted((path / TEMPLATES_FOLDER).glob("*.jinja")):
        found[file.stem] = small_file(file).decode(errors="replace")
    return {name: source for name, source in found.items() if isinstance(source, str) and source}

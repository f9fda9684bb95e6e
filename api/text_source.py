"""What a model says of its texts, wherever it is written: its tokenizer, its templates, where texts begin and end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from ollampi.api.infill import Infill, find_infill, folder_infill, named_infill
from ollampi.mpiruntime.errors import ModelError
from ollampi.mpiruntime.folder_templates import TEMPLATE_FILE, folder_templates
from ollampi.mpiruntime.gguf_tokenizer import GgufVocabulary
from ollampi.mpiruntime.json_file import read_json
from ollampi.mpiruntime.tokenizer_file import REMEDY, TOKENIZER_FILES, tokenizer_file
from ollampi.mpiruntime.tokenizer_folder import CONFIG_FILE, named_tokens, token_text, tokenizer_of

MAX_TEMPLATE_CHARS = 1 << 20
TEXT_FILES = (*TOKENIZER_FILES, CONFIG_FILE, "generation_config.json", TEMPLATE_FILE)


@dataclass(frozen=True)
class TextSource:
    """A model's tokenizer, chat templates and special tokens.

    tokenizer: makes a new one, raises ModelError; file: where it is read from, for messages; templates: their sources
    by name; names: the special tokens that templates may use, by name (bos_token and the like); infill: the tokens for
    filling in the middle, None for a model that does not.
    """

    tokenizer: Callable[[], Tokenizer]
    file: str
    templates: dict[str, str] = field(default_factory=dict)
    names: dict[str, Any] = field(default_factory=dict)
    bos_token_id: int | None = None
    eos_token_ids: list[int] = field(default_factory=list)
    infill: Infill | None = None

    @property
    def bos_token(self) -> str:
        """Return the text of the token at the start of texts; empty where there is none."""
        return str(self.names.get("bos_token", ""))

    @property
    def chat_template(self) -> str | None:
        """Return the source of the usual chat template, or None for a model that only completes text."""
        return self.templates.get("default") or next(iter(self.templates.values()), None)

    def template_for(self, tools: bool) -> str | None:
        """Return the source of the template for a conversation with or without tools, None where there is none."""
        return self.templates.get("tool_use", self.chat_template) if tools else self.chat_template


def folder_source(path: Path, text_config: dict[str, Any]) -> TextSource:
    """Return what the files of a model folder say; raise ModelError, OSError."""
    file = tokenizer_file(path)
    if not file.is_file():
        raise ModelError(f"the folder has no tokenizer; {REMEDY}")
    tokens = read_json(path / CONFIG_FILE, {})
    generation = read_json(path / "generation_config.json", {})
    more = tokens.get("additional_special_tokens")
    names: dict[str, Any] = {"bos_token": "", "eos_token": "", **named_tokens(tokens)}
    if isinstance(more, list):
        names["additional_special_tokens"] = [text for text in map(token_text, more) if text]
    return TextSource(
        partial(tokenizer_of, path),
        file.name,
        _checked(folder_templates(path, tokens.get("chat_template"))),
        names,
        next(iter(_ids(generation.get("bos_token_id", text_config.get("bos_token_id")))), None),
        _ids(generation.get("eos_token_id", text_config.get("eos_token_id"))),
        folder_infill(file, tokens),
    )


def gguf_source(read: Callable[[], dict[str, Any]]) -> TextSource:
    """Return what the metadata of a GGUF file says, which `read` returns; raise ModelError with the key.

    The tokenizer reads it again: a list of models does not hold the vocabularies of all.
    """
    vocabulary = GgufVocabulary(read())
    names = {"bos_token": vocabulary.text(vocabulary.bos), "eos_token": vocabulary.text(vocabulary.eos)}
    return TextSource(
        lambda: GgufVocabulary(read()).tokenizer(),
        "tokenizer.ggml metadata",
        _checked(vocabulary.templates()),
        names,
        vocabulary.bos,
        vocabulary.ends,
        named_infill(*vocabulary.infill) or find_infill(vocabulary.ids.__contains__),
    )


def _checked(templates: dict[str, str]) -> dict[str, str]:
    """Return the templates; raise ModelError where one is absurdly long."""
    if any(len(source) > MAX_TEMPLATE_CHARS for source in templates.values()):
        raise ModelError(f"the chat template has more than {MAX_TEMPLATE_CHARS} characters; shorten it")
    return templates


def _ids(value: object) -> list[int]:
    """Return token ids that are written as one number, a list, or not at all; what can be no id is left out."""
    values = value if isinstance(value, list) else [value]
    return [item for item in values if type(item) is int and 0 <= item < 2**31]

"""Hold a conversation with a model on the terminal."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from ollampi.launcher.client import Client, Json
from ollampi.launcher.parameters import parse_parameter
from ollampi.launcher.screen import Screen, show_answer
from ollampi.launcher.words import show_text, timings
from ollampi.mpiruntime.errors import ConfigError, OllampiError

SET_HELP = """\
  /set parameter NAME VALUE   set a parameter of the answers, e.g. temperature 0
  /set system TEXT            set the system message
  /set think|nothink          let the model reason first, or not
  /set verbose|quiet          print timings after each answer, or not
  /set format json|noformat   have every answer in JSON, or not
  /set wordwrap|nowordwrap    break lines between words, or not
  /set history|nohistory      keep what you type in ~/.ollama/history, or not
"""
SHOW_HELP = """\
  /show info                  describe the model
  /show license|modelfile|parameters|system|template
"""
HELP = f"""\
Available commands:
{SET_HELP}{SHOW_HELP}\
  /load MODEL                 go on with another model, from an empty session
  /save MODEL                 keep model, settings and messages as a model
  /clear                      forget the conversation so far
  /bye, /exit                 leave (so does Ctrl-D)
  /?, /help                   this text

Begin and end a message of several lines with three quotes: \"\"\"
Ctrl-C stops an answer.
"""

THINK_LEVELS = ("low", "medium", "high", "max")
_QUOTES = '"""'


class Lines(Protocol):
    """Give the lines a person types."""

    def read(self, prompt: str) -> str:
        """Return the next line; raise EOFError at the end, KeyboardInterrupt for Ctrl-C."""

    def remember(self, wanted: bool) -> None:
        """Keep the lines that follow in the history, or not."""


@dataclass
class Settings:
    """Hold what holds for every question: the model, how it shall answer and how the answer is shown."""

    model: str
    system: str = ""
    options: Json = field(default_factory=dict)
    format: str | Json | None = None
    think: bool | str | None = None
    keep_alive: str | float | None = None
    verbose: bool = False
    width: int = 0
    hide_thinking: bool = False

    def request(self) -> Json:
        """Return the fields that /api/generate and /api/chat share; what is not set is left to the server."""
        options = self.options or None
        fields = {"options": options, "format": self.format, "think": self.think, "keep_alive": self.keep_alive}
        return {"model": self.model} | {name: value for name, value in fields.items() if value is not None}


class Repl:
    """Read lines, send them with the conversation so far, write the answers."""

    def __init__(self, client: Client, settings: Settings, lines: Lines, write: Callable[[str], Any]) -> None:
        self.settings = settings
        self.messages: list[Json] = []
        self._client, self._lines, self._write = client, lines, write

    def run(self) -> None:
        """Load the model, then answer until the end of the input or /bye."""
        self._load(self.settings.model)
        while True:
            try:
                text, quoted = self._read()
            except EOFError:
                self._write("\n")
                return
            except KeyboardInterrupt:
                self._write("\nUse Ctrl-D or /bye to leave.\n")
                continue
            if not quoted and text in ("/bye", "/exit"):
                return
            try:
                self._handle(text, quoted)
            except OllampiError as error:
                self._write(f"Error: {error}\n")
            except KeyboardInterrupt:  # while a command waited for the server
                self._write("\n")

    def _read(self) -> tuple[str, bool]:
        """Return the next message or command, and whether it is a message that three quotes enclosed."""
        line = self._lines.read(">>> ")
        before, quotes, text = line.partition(_QUOTES)
        if not quotes or before.strip() not in ("", "/set system"):
            return line.strip(), False
        while _QUOTES not in text:
            text += "\n" + self._lines.read("... ")
        return (before + text.replace(_QUOTES, "", 1).strip("\n")).strip(), not before.strip()

    def _handle(self, text: str, quoted: bool) -> None:
        if text.startswith("/") and not quoted:
            self._command(text)
        elif text:
            self._say(text)

    def _say(self, text: str) -> None:
        system = [{"role": "system", "content": self.settings.system}] if self.settings.system else []
        question = {"role": "user", "content": text}
        body = {**self.settings.request(), "messages": [*system, *self.messages, question]}
        screen = Screen(self._write, self.settings.width, self.settings.hide_thinking)
        answer = show_answer(self._client.stream("/api/chat", body), screen)
        self._write("\n")
        if answer.content or not answer.interrupted:  # a question stopped before its answer was never asked
            thinking = {"thinking": answer.thinking} if answer.thinking else {}
            self.messages += [question, {"role": "assistant", "content": answer.content, **thinking}]
        if self.settings.verbose and not answer.interrupted:
            self._write(timings(answer.final) + "\n")

    def _load(self, model: str) -> None:
        self._client.post("/api/generate", {**self.settings.request(), "model": model})
        self.settings.model = model
        self.messages.clear()

    def _command(self, line: str) -> None:
        match line.split():
            case ["/set"] | ["/?" | "/help", "set" | "/set"]:
                self._write(f"Available commands:\n{SET_HELP}")
            case ["/show"] | ["/?" | "/help", "show" | "/show"]:
                self._write(f"Available commands:\n{SHOW_HELP}")
            case ["/?" | "/help", *_]:
                self._write(HELP)
            case ["/clear"]:
                self.messages.clear()
                self._write("Cleared the session.\n")
            case ["/load", model]:
                self._load(model)
                self._write(f"Loaded {model}.\n")
            case ["/save", name]:
                self._save(name)
            case ["/show", "info" | "system" | "parameters" | "template" | "modelfile" | "license" as part]:
                self._show(part)
            case ["/set", "system", _, *_]:
                self.settings.system = line.split(maxsplit=2)[2]
                self._write("Set system message.\n")
            case ["/set", "parameter", name, value, *more]:
                self.settings.options[name] = parse_parameter(name, [value, *more])
                self._write(f"Set parameter {name} to {' '.join([value, *more])}.\n")
            case ["/set", *words]:
                self._switch(words)
            case _:
                raise ConfigError(f"unknown command {line!r}: type /? for help")

    def _save(self, name: str) -> None:
        settings = self.settings
        fields = {"system": settings.system, "parameters": settings.options, "messages": self.messages}
        chosen = {field: value for field, value in fields.items() if value}
        self._client.post("/api/create", {"model": name, "from": settings.model, **chosen})
        self._write(f"Created new model '{name}'\n")

    def _switch(self, words: list[str]) -> None:
        match words:
            case ["verbose" | "quiet" as word]:
                self.settings.verbose = word == "verbose"
            case ["history" | "nohistory" as word]:
                self._lines.remember(word == "history")
            case ["think" | "nothink" as word]:
                self._think(word == "think")
            case ["format", "json"] | ["noformat"]:
                self.settings.format = "json" if words[0] == "format" else None
            case ["wordwrap" | "nowordwrap" as word]:
                self.settings.width = shutil.get_terminal_size().columns if word == "wordwrap" else 0
            case ["think", level]:
                self._think(level)
            case _:
                raise ConfigError(f"cannot set {' '.join(words)!r}: type /? for help")
        self._write(f"Set {' '.join(words)}.\n")

    def _think(self, wanted: bool | str) -> None:
        """Have the model reason, or not; raise ConfigError for one that cannot, whose next answer would be an error."""
        if wanted is not False:
            if isinstance(wanted, str) and wanted not in THINK_LEVELS:
                raise ConfigError(f"cannot think {wanted!r}: choose one of {', '.join(THINK_LEVELS)}")
            shown = self._client.post("/api/show", {"model": self.settings.model})
            if "thinking" not in (shown.get("capabilities") or ()):
                raise ConfigError(f"{self.settings.model!r} does not support thinking")
        self.settings.think = wanted

    def _show(self, part: str) -> None:
        answer = self._client.post("/api/show", {"model": self.settings.model})
        if part == "info":
            self._write(show_text(answer))
            return
        text = str(answer.get(part) or "")
        if part == "system":
            text = self.settings.system or text
        if part == "parameters":
            text = "\n".join([*text.splitlines(), *(f"{k:<30} {v}" for k, v in self.settings.options.items())])
        self._write(f"{text}\n" if text else f"No {part} for this model.\n")

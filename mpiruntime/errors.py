"""Name every error that a user can cause or must act upon.

OllampiError                a message with the value, the constraint and the remedy
|- ConfigError              the configuration or the command line
|  `- WorldError            the number of ranks or how they were started
|- ModelError               a model folder: config, tensors, tokenizer
|  |- CheckpointError       a file of weights
|  `- MemoryShortError      the model needs more memory than there is
|- RequestError             one request; others go on
|  |- ContextError          the prompt does not fit the context
|  |- AbsentError           what it is about is not there
|  |- ConflictError         what it is about is in no state for it
|  `- BusyError             no room now; a later try may succeed
`- RankFailure              another rank of this world failed

LostRank                    a rank is gone, so that nothing can be agreed on any more
LostWeights                 weights that are read in every step cannot be read, which the other ranks do not know
"""

_SHOWN_CHARS = 200  # of a value in a message; paths of clusters are long


def short(text: str) -> str:
    """Return a text as a message can hold it: what is longer than 200 characters is cut, and its length named."""
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}... ({len(text)} characters)"


def quoted(value: object) -> str:
    """Return a value in quotes, if it is a text, as `short` does."""
    if not isinstance(value, str):
        return short(repr(value))
    return repr(value) if len(value) <= _SHOWN_CHARS else f"{value[:_SHOWN_CHARS]!r}... ({len(value)} characters)"


class OllampiError(Exception):
    """Carry a message that names the value, the constraint and the remedy."""


class ConfigError(OllampiError):
    """The configuration or the command line cannot be used."""


class WorldError(ConfigError):
    """The world has the wrong size or was started in a way that cannot work."""


class ModelError(OllampiError):
    """A model folder cannot be used."""


class CheckpointError(ModelError):
    """A file of weights is missing, damaged or does not hold what the model needs."""


class MemoryShortError(ModelError):
    """A model needs more memory than some host or GPU has."""


class RequestError(OllampiError):
    """One request cannot be served; others go on."""


class ContextError(RequestError):
    """A prompt does not fit the context length."""


class AbsentError(RequestError):
    """What a request is about is not there."""


class ConflictError(RequestError):
    """What a request is about is in a state that does not allow it."""


class BusyError(RequestError):
    """The server has no room for this request now."""


class ShutdownError(RequestError):
    """The server takes no new work, since it is about to end."""


class RankFailure(OllampiError):
    """Another rank of this world failed, so a collective can never complete."""


class LostRank(Exception):
    """The process of a rank has ended; no OllampiError, since the other ranks cannot even end in order."""


class LostWeights(Exception):
    """A step cannot go on on this rank; no OllampiError, since the other ranks wait for it in a collective."""


def code_of(error: OllampiError) -> str:
    """Return the word by which clients of the engine tell errors apart."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), "internal")


_CODES: list[tuple[type[OllampiError], str]] = [
    (ShutdownError, "shutdown"),
    (BusyError, "busy"),
    (ContextError, "context"),
    (AbsentError, "absent"),
    (ConflictError, "conflict"),
    (MemoryShortError, "memory"),
    (ModelError, "model"),
    (RequestError, "request"),
]

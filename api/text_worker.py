"""Turn texts into token ids in processes of their own: `python -m ollampi.api.text_worker`.

Standard input is a socket on which others come in. For each, this process copies itself (fork: it has one thread and
no tokenizer), and the copy serves one model: its socket says which, brings the facts of its tokenizer out, and then
further sockets in, one for each question that is asked at a time. So a tokenizer that takes long to make, or ends its
process, concerns nobody who asks for another model. A process ends when the other side closes its first socket.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import socket
import threading
from array import array
from pathlib import Path

from ollampi.api.text_encoder import TextEncoder
from ollampi.api.tokenizer_content import summary_of, tokenizer_content
from ollampi.mpiruntime import wire
from ollampi.mpiruntime.errors import ModelError
from ollampi.mpiruntime.lifetime import die_with
from ollampi.mpiruntime.tokenizer_folder import tokenizer_at

_log = logging.getLogger(__name__)


def main() -> None:
    """Make processes until the other side is gone."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # the other side decides
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    own, copies = os.getpid(), set[int]()
    with socket.socket(fileno=0) as control:
        while (model := taken(control)) is not None:
            copies = {pid for pid in copies if os.waitpid(pid, os.WNOHANG)[0] == 0}
            with model:
                pid = _copied()
                if pid == 0:
                    control.close()
                    _serve(model, own)
                copies |= {pid} if pid else set()
    for pid in copies:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def taken(control: socket.socket) -> socket.socket | None:
    """Return the next socket that comes in, None where the other side is gone."""
    try:
        _, descriptors, _, _ = socket.recv_fds(control, 1, 1)
    except OSError:
        return None
    return socket.socket(fileno=descriptors[0]) if descriptors else None


def _copied() -> int | None:
    """Return 0 in a copy of this process and the copy's id in this one; None where there can be none.

    Then its socket closes, which says it to the other side.
    """
    try:
        return os.fork()
    except OSError as e:
        _log.error("no process for the texts of a model can be made: %s", e)
        return None


def _serve(model: socket.socket, parent: int) -> None:
    """Serve one model until the other side is gone; the process ends here, whatever its threads do."""
    try:
        die_with(parent)
        encoder = _made(model)
        while encoder is not None and (connection := taken(model)) is not None:
            threading.Thread(target=_answer_all, args=(encoder, connection), daemon=True).start()
    except wire.Closed:
        pass
    except BaseException:
        _log.exception("the process for the texts of a model ends")
    finally:
        os._exit(0)


def _made(model: socket.socket) -> TextEncoder | None:
    """Return the tokenizer that is asked for, whose facts are sent; None where only a summary, or what is wrong, is."""
    request = wire.receive(model)
    path, file = Path(request["path"]), request["file"]
    try:
        if request.get("summary"):
            wire.send(model, {"summary": json.dumps(summary_of(tokenizer_content(path, file)))})
            return None
        encoder = TextEncoder(lambda: tokenizer_at(path), file)
    except (ModelError, OSError) as e:
        why = f"the model's {file} cannot be read: {e.strerror}; check it" if isinstance(e, OSError) else str(e)
        wire.send(model, {"error": why})
        return None
    wire.send(model, encoder.facts.message())
    return encoder


def _answer_all(encoder: TextEncoder, connection: socket.socket) -> None:
    """Answer the questions that come in on a connection until it closes."""
    with connection:
        try:
            while True:
                wire.send(connection, answer(encoder, wire.receive(connection)))
        except wire.Closed:
            return


def answer(encoder: TextEncoder, request: wire.Message) -> wire.Message:
    """Return {"ids": int32 as bytes}, {"found": bool} or {"id": int or None}; {"error": why} where that fails.

    request: {"pieces": [[text, is plain], ...], "behind": bool}, {"sly": text} or {"token": text}; texts are UTF-8, in
    which clients may have half a surrogate pair.
    """
    try:
        if "pieces" in request:
            pieces = [(_text(raw), is_plain) for raw, is_plain in request["pieces"]]
            return {"ids": array("i", encoder.encode(pieces, request["behind"])).tobytes()}
        if "sly" in request:
            return {"found": encoder.becomes_special(_text(request["sly"]))}
        return {"id": encoder.token_id(_text(request["token"]))}
    except (ModelError, UnicodeEncodeError) as e:
        return {"error": str(e)}


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogatepass")


if __name__ == "__main__":
    main()

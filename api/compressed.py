"""Unpack the body of a request that its client has compressed."""

from __future__ import annotations

import zstandard

from ollampi.api.errors import ApiError, bad_request

MAX_UNPACKED_BYTES = 20 << 20  # as in Ollama
_MAX_WINDOW_BYTES = 32 << 20  # what unpacking may remember; no level makes a larger one of a body in bounds


def unpacked(data: bytes, limit: int) -> bytes:
    """Return what zstd data holds, at most `limit` bytes; raise ApiError (400, 413) without unpacking more."""
    reader = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES).stream_reader(data, read_across_frames=True)
    try:
        found = reader.read(limit + 1)
    except zstandard.ZstdError:
        raise bad_request("the request body is not what zstd makes; send it without Content-Encoding") from None
    if len(found) > limit:
        raise ApiError(413, f"the request body holds more than {limit} bytes when it is unpacked; shorten it")
    return found

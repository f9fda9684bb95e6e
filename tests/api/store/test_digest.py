"""Only a digest becomes the name of a blob (CVE-2024-37032, "Probllama")."""

from __future__ import annotations

import pytest

from ollampi.api.errors import ApiError
from ollampi.api.store.digest import parse_digest
from ollampi.api.store.operations import find_blob, put_blob

EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
HOSTILE = {
    "up": "sha256:../../x",
    "up-padded": "sha256:" + "../" * 21 + "x",
    "up-behind": f"sha256-{EMPTY}/../x",
    "63": f"sha256:{EMPTY[:63]}",
    "65": f"sha256:{EMPTY}0",
    "encoded": "sha256:%2e%2e%2f" + EMPTY[12:],
    "nul": f"sha256:{EMPTY[:63]}\0",
    "nul-behind": f"sha256:{EMPTY}\0",
    "line": f"sha256:{EMPTY}\n",
    "other": f"sha512:{EMPTY}",
    "bare": EMPTY,
    "empty": "",
    "long": "sha256:" + "a" * 10_000,
    "wide": "sha256:" + "\uff10" * 64,  # digits, but none of ours
    "surrogate": f"sha256:{EMPTY[:63]}\ud800",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_what_is_no_digest_is_refused_and_nothing_written(text, local, root, tmp_path):
    for action in (lambda: parse_digest(text), lambda: find_blob(local, text), lambda: put_blob(local, text, [b"x"])):
        with pytest.raises(ApiError, match=r"^invalid digest format$") as caught:
            action()
        assert caught.value.status == 400
    assert not root.exists()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", [f"sha256:{EMPTY}", f"sha256-{EMPTY}", f"sha256:{EMPTY.upper()}"])
def test_a_digest_is_written_in_lower_case_with_a_colon(text):
    digest = parse_digest(text)
    assert digest == f"sha256:{EMPTY}"
    assert (digest.hex, digest.file_name) == (EMPTY, f"sha256-{EMPTY}")

"""List the files of a repository on Hugging Face, through huggingface_hub.

That package and its HTTP client take 0.4 s to import, longer than the HTTP process takes to start: they are imported
when they are needed first.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from ollampi.api.errors import ApiError
from ollampi.api.registry.transfer import TransientError
from ollampi.api.store.manifest import is_relative

PUBLIC_ENDPOINT = "https://huggingface.co"


@dataclass(frozen=True)
class HubFile:
    """A listed file: large ones have a SHA-256, those that lie in git itself git's id of a blob."""

    path: str
    size: int | None
    url: str
    sha256: str | None = None
    git_id: str | None = None


@dataclass(frozen=True)
class Repository:
    """One commit of a repository with its files, and the token that the user has for it."""

    id: str
    files: tuple[HubFile, ...]
    token: str | None


def hub_endpoint() -> str:
    """Return the URL of Hugging Face, or of the mirror that HF_ENDPOINT names."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or PUBLIC_ENDPOINT


def list_repository(endpoint: str, repo: str, revision: str | None, timeout_s: float) -> Repository:
    """Return what Hugging Face says of a repository; raise ApiError, and TransientError for what may pass."""
    from httpx2 import HTTPError
    from huggingface_hub import HfApi, get_token, hf_hub_url
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    try:
        info = HfApi(endpoint=endpoint).model_info(repo, revision=revision, files_metadata=True, timeout=timeout_s)
    except GatedRepoError as e:
        raise ApiError(500, f"{repo} is gated: accept its terms on {endpoint} and set HF_TOKEN for the server") from e
    except (RepositoryNotFoundError, HFValidationError) as e:
        raise ApiError(500, f"{repo} does not exist, or is private and the server's HF_TOKEN may not read it") from e
    except HfHubHTTPError as e:
        status = e.response.status_code
        if status == 429 or status >= 500:
            raise TransientError(f"{endpoint} answered {status}") from e
        raise ApiError(500, f"{endpoint} answered {status} about {repo}; check its name and its tag") from e
    except HTTPError as e:
        raise TransientError(f"{endpoint} cannot be reached ({type(e).__name__})") from e
    except (ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as e:
        raise ApiError(500, f"{endpoint} gave no list of the files of {repo}; check HF_ENDPOINT") from e
    files = tuple(
        HubFile(
            path=each.rfilename,
            size=_number(each.size if each.lfs is None else each.lfs.size),
            url=hf_hub_url(repo, each.rfilename, revision=info.sha, endpoint=endpoint),
            sha256=None if each.lfs is None else each.lfs.sha256,
            git_id=each.blob_id,
        )
        for each in info.siblings or ()
        if is_relative(each.rfilename)
    )
    return Repository(repo, files, get_token())


def _number(size: object) -> int | None:
    """Return a size that is one; the package takes whatever the answer has."""
    return size if type(size) is int else None

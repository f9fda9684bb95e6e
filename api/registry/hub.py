"""Find the files of a model on Hugging Face: a GGUF file by its quantisation, or a folder of safetensors.

huggingface_hub asks for the list of files and knows the user's token; the files themselves come like any other blob,
in pieces and checked against the digest that the list gives. Nothing that could be code is asked for.
"""

from __future__ import annotations

import fnmatch
import functools
import hashlib
import json
import re
from collections.abc import Sequence

from ollampi.api.errors import ApiError
from ollampi.api.names import DEFAULT_TAG, GGUF, Name
from ollampi.api.registry.hosts import origin_of
from ollampi.api.registry.hub_listing import HubFile, Repository, list_repository
from ollampi.api.registry.remote import RemoteFile
from ollampi.api.registry.tokens import Nobody, Tokens
from ollampi.api.registry.transfer import Cancel, Limits, TransientError, retried
from ollampi.api.registry.web import Web, bounded
from ollampi.api.store.blobs import Blobs
from ollampi.api.store.digest import Digest, parse_digest
from ollampi.api.store.manifest import CONFIG_TYPE, JSON_TYPE, MODEL_TYPE, TENSOR_TYPE, Layer, Manifest

HUB_HOSTS = ("hf.co", "huggingface.co")
MAX_SMALL_BYTES = 64 << 20  # of a file that the list gives no SHA-256 of
_SAFETENSORS = ".safetensors"
_ALLOWED = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "modules.json",
    "sentence_bert_config.json",
    "[0-9]_*/config.json",
)
_REFUSED = ("consolidated*", "*/*.safetensors*")  # the same weights under their makers' names
_PREFERRED = ("Q4_K_M", "Q4_K_S", "Q4_0", "Q5_K_M", "Q6_K", "Q8_0", "Q3_K_M", "BF16", "F16", "F32")
_PART_OF = re.compile(r"-\d{5}-of-\d{5}$")


def hub_model(
    web: Web, blobs: Blobs, name: Name, endpoint: str, cancel: Cancel, limits: Limits
) -> tuple[Manifest, dict[Digest, RemoteFile]]:
    """Return the manifest of a model on Hugging Face, and where its large blobs are; small ones are put into `blobs`.

    Raise ApiError and ModelError.
    """

    def listed(revision: str | None) -> Repository:
        repo = f"{name.namespace}/{name.model}"
        return retried(lambda: list_repository(endpoint, repo, revision, limits.stall_s), cancel, limits)

    repository = listed(None)
    gguf = gguf_file(repository.files, name.tag)
    if gguf is not None:
        chosen = [gguf]
    else:
        chosen = folder_files((repository if name.tag.lower() == DEFAULT_TAG else listed(name.tag)).files)
    if not chosen:
        raise ApiError(500, f"{repository.id} has neither GGUF nor safetensors files; choose another repository")
    origin = origin_of(endpoint)
    credentials = Tokens(origin, lambda _: b"", repository.token) if origin.scheme == "https" else Nobody()
    layers, files = [], {}
    for each in chosen:
        file = RemoteFile(web, each.url, credentials, each.path, _size(each))
        if each.sha256 is None:
            digest = retried(functools.partial(_put_small, blobs, file, each), cancel, limits)
        else:
            digest = parse_digest(f"sha256:{each.sha256}")
            files[digest] = file
        layers.append(Layer(_media_type(each), digest, file.size, "" if each is gguf else each.path))
    config = json.dumps({"model_format": "gguf" if layers[0].media_type == MODEL_TYPE else "safetensors"}).encode()
    made = Manifest(Layer(CONFIG_TYPE, blobs.put([config]), len(config)), tuple(layers))
    return Manifest.parse(made.encode()), files  # which checks what the list said


def gguf_file(files: Sequence[HubFile], tag: str) -> HubFile | None:
    """Return the GGUF file that a tag means, None where there is no GGUF file.

    A tag is a quantisation or a file's name; the default is Q4_K_M, or else what comes close. Raise ApiError where no
    file fits, or only one that lies in parts: the store has none such.
    """
    models: dict[str, list[HubFile]] = {}
    for each in sorted(files, key=lambda file: file.path):
        base = each.path.rpartition("/")[2]
        if base.lower().endswith(GGUF) and "mmproj" not in base.lower():
            models.setdefault(_PART_OF.sub("", each.path[: -len(GGUF)]), []).append(each)
    if not models:
        return None
    fitting = [stem for wanted in _wanted(tag) for stem in models if _fits(stem, wanted)]
    if tag.lower() == DEFAULT_TAG:
        fitting += [stem for stem in models if stem not in fitting]
    if not fitting:
        there = ", ".join(sorted({stem.rpartition("/")[2] for stem in models})[:20])
        raise ApiError(500, f"no GGUF file fits the tag {tag!r}; there are {there}")
    whole = next((models[stem][0] for stem in fitting if len(models[stem]) == 1), None)
    if whole is None:
        raise ApiError(
            500,
            f"{fitting[0].rpartition('/')[2]} lies in {len(models[fitting[0]])} parts, which the store cannot hold;"
            " choose a smaller one, or download the parts into a folder of model_folders",
        )
    return whole


def folder_files(files: Sequence[HubFile]) -> list[HubFile]:
    """Return the files of a folder of safetensors, none where it is no such folder."""
    chosen = [each for each in files if _is_allowed(each.path)]
    names = {each.path for each in chosen}
    if "config.json" not in names or not any(name.endswith(_SAFETENSORS) for name in names):
        return []
    return sorted(chosen, key=lambda file: file.path)


def _put_small(blobs: Blobs, file: RemoteFile, listed: HubFile) -> Digest:
    """Keep a file that lies in git itself, whose id is a SHA-1 of its size and bytes; return its digest."""
    data = bounded(file.whole(), file.size, file.what)
    if len(data) < file.size:
        raise TransientError(f"{file.what} broke off")
    found = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    if listed.git_id is not None and found != listed.git_id:
        raise ApiError(500, f"{file.what} came with other bytes than listed; pull again")
    return blobs.put([data])


def _size(file: HubFile) -> int:
    """Return the size of a listed file; raise ApiError where it cannot be used."""
    if file.size is None or file.size < 0 or (file.sha256 is None and file.size > MAX_SMALL_BYTES):
        raise ApiError(500, f"{file.path} is listed with {file.size} bytes, which cannot be; choose another repository")
    return file.size


def _is_allowed(path: str) -> bool:
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in _ALLOWED) and not any(
        fnmatch.fnmatchcase(path, pattern) for pattern in _REFUSED
    )


def _wanted(tag: str) -> tuple[str, ...]:
    return _PREFERRED if tag.lower() == DEFAULT_TAG else (tag,)


def _fits(stem: str, tag: str) -> bool:
    """Return whether a file's path, without ending and number of its part, is what a tag means."""
    base, wanted = stem.rpartition("/")[2].lower(), _PART_OF.sub("", tag.lower().removesuffix(GGUF))
    return wanted == base or re.search(rf"[.\-_]{re.escape(wanted)}$", base) is not None


def _media_type(file: HubFile) -> str:
    if file.path.lower().endswith(GGUF):
        return MODEL_TYPE
    return TENSOR_TYPE if file.path.endswith(_SAFETENSORS) else JSON_TYPE

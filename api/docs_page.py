"""Show an OpenAPI document as a page without scripts: operations, parameters, schemas, and a curl line for each."""

from __future__ import annotations

import base64
import hashlib
import json
import shlex
from html import escape
from typing import Any

JSON = dict[str, Any]

_STYLE = """
:root { color-scheme: light dark; --line: #8885; --soft: #8882; --mark: #2a7de1; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
details { border: 1px solid var(--line); border-radius: 6px; margin: .4rem 0; padding: .3rem .7rem; }
details details { margin-left: 1rem; }
summary { cursor: pointer; }
code, pre { font: 13px/1.5 ui-monospace, monospace; }
pre { background: var(--soft); border-radius: 4px; padding: .5rem; overflow-x: auto; white-space: pre-wrap; }
table { border-collapse: collapse; width: 100%; }
td { border-top: 1px solid var(--line); padding: .2rem .5rem .2rem 0; vertical-align: top; }
b { color: var(--mark); display: inline-block; min-width: 4rem; }
small { opacity: .7; }
"""
_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
CONTENT_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_HASH}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_EXAMPLES = {  # of fields that most routes want
    "model": "demo", "prompt": "import os", "input": "import os", "source": "demo", "destination": "copy",
    "max_tokens": 50, "messages": [{"role": "user", "content": "Write the function close."}],
}  # fmt: skip


def docs_page(document: JSON) -> str:
    """Return the page."""
    info, schemas = document["info"], document["components"]["schemas"]
    operations = [
        _operation(method.upper(), path, operation, schemas)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    named = [_details(f"<code>{escape(name)}</code>", _schema(schema), name) for name, schema in schemas.items()]
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width">',
            f"<title>{escape(info['title'])}</title><style>{_STYLE}</style></head><body>",
            f"<h1>{escape(info['title'])}</h1><p>{escape(info['description'])}</p>",
            '<p><a href="/api/openapi.json">openapi.json</a></p><h2>Operations</h2>',
            *operations,
            "<h2>Schemas</h2>",
            *named,
            "</body></html>",
        ]
    )


def _operation(method: str, path: str, operation: JSON, schemas: JSON) -> str:
    """Return one operation."""
    parts = [f"<p><small>needs the permission <code>{escape(operation['x-permission'])}</code></small></p>"]
    parts.append(f"<pre>{escape(_curl(method, path, operation, schemas))}</pre>")
    if parameters := operation.get("parameters"):
        rows = [(item["name"], item["in"], item["schema"].get("type", "")) for item in parameters]
        parts.append("<p>Parameters</p>" + _table(rows))
    for kind, media in operation.get("requestBody", {}).get("content", {}).items():
        parts.append(_details(f"Body <small>{escape(kind)}</small>", _schema(_resolved(media["schema"], schemas))))
    for status, response in operation["responses"].items():
        inner = "".join(
            f"<p><small>{escape(kind)}</small></p>{_schema(_resolved(media['schema'], schemas))}"
            for kind, media in response.get("content", {}).items()
        )
        parts.append(_details(f"{status} <small>{escape(response['description'])}</small>", inner))
    title = f"<b>{method}</b> <code>{escape(path)}</code> <small>{escape(operation['summary'])}</small>"
    return _details(title, "".join(parts), operation["operationId"])


def _curl(method: str, path: str, operation: JSON, schemas: JSON) -> str:
    """Return a command line that makes a request."""
    words = ["curl"]
    if method == "HEAD":
        words.append("-I")
    elif method != ("POST" if "requestBody" in operation else "GET"):
        words += ["-X", method]
    words.append(f"localhost:11434{path}")
    content = operation.get("requestBody", {}).get("content", {})
    if "application/json" in content:
        fields = _resolved(content["application/json"]["schema"], schemas).get("properties", {})
        words += ["-d", json.dumps({name: value for name, value in _EXAMPLES.items() if name in fields})]
    elif "multipart/form-data" in content:
        words += ["-F", "file=@FILE", "-F", "model=demo"]
    elif content:
        words += ["--data-binary", "@FILE"]
    return shlex.join(words)


def _schema(schema: JSON) -> str:
    """Return a schema as a table of its fields, or as JSON where it is no object with fields."""
    if not (properties := schema.get("properties")):
        return f"<pre>{escape(json.dumps(schema, indent=1, ensure_ascii=False))}</pre>"
    about = f"<p>{escape(schema['description'])}</p>" if "description" in schema else ""
    required = schema.get("required", [])
    rows = [
        (name + (" *" if name in required else ""), _kind(value), _note(value)) for name, value in properties.items()
    ]
    return about + _table(rows)


def _kind(schema: JSON) -> str:
    """Return the type of a field in a few words."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        return " or ".join(_kind(choice) for choice in schema["anyOf"])
    if values := schema.get("enum") or ([schema["const"]] if "const" in schema else []):
        return " or ".join(json.dumps(value) for value in values)
    kinds = schema.get("type", "anything")
    kinds = kinds if isinstance(kinds, list) else [kinds]
    items = f" of {_kind(schema['items'])}" if schema.get("items") else ""
    return " or ".join(kind + (items if kind == "array" else "") for kind in kinds)


def _note(schema: JSON) -> str:
    """Return what else is known of a field."""
    notes = [schema["description"]] if "description" in schema else []
    bounds = [f"{word} {schema[key]}" for key, word in (("minimum", "from"), ("maximum", "to")) if key in schema]
    if bounds:
        notes.append(" ".join(bounds))
    if schema.get("default") not in (None, "", [], {}):
        notes.append(f"default {json.dumps(schema['default'])}")
    return "; ".join(notes)


def _resolved(schema: JSON, schemas: JSON) -> JSON:
    """Return the schema that a reference names."""
    found: JSON = schemas[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
    return found


def _details(title: str, inner: str, name: str = "") -> str:
    """Return what opens on a click."""
    anchor = f' id="{escape(name)}"' if name else ""
    return f"<details{anchor}><summary>{title}</summary>{inner}</details>"


def _table(rows: list[tuple[str, str, str]]) -> str:
    """Return a table; the first column is code."""
    lines = [
        f"<tr><td><code>{escape(first)}</code></td><td>{escape(second)}</td><td>{escape(third)}</td></tr>"
        for first, second, third in rows
    ]
    return f"<table>{''.join(lines)}</table>"

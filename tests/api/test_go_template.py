"""Check Go's templates: what they render, what is refused, and that hostile ones take no time."""

from __future__ import annotations

import time

import pytest

from ollampi.api.errors import ApiError
from ollampi.api.go_template import MAX_CHARS, MAX_OUTPUT_CHARS, GoTemplate


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ .Prompt }}", "P"),
        ("{{ if .System }}<s>{{ .System }}{{ end }}<u>{{ .Prompt }}<a>{{ .Response }}<e>", "<s>S<u>P<a>"),
        ("{{- if .Suffix }}x{{ else }}y{{ end }}", "y"),
        ("a  {{- .Prompt -}}  b", "aPb"),
        ("{{/* note */}}{{ if .System }}{{ if .Prompt }}1{{ end }}2{{ end }}3", "123"),
        ("{{ if .System }}{{ .Response }}{{ end }}never", ""),
        ("a {{- /* }} {{ .Nope }} */ -}} b", "ab"),
        ("a{{-\n.Prompt\t-}}b", "aPb"),
        ("a\n\t {{- .Prompt -}}\r\n b", "aPb"),
        ("{{.Prompt}} }} { {", "P }} { {"),
        ("a \u00a0{{- .Prompt }}", "a \u00a0P"),
        ("", ""),
    ],
)
def test_go_template(source, expected):
    assert GoTemplate(source).render(System="S", Prompt="P") == expected


@pytest.mark.parametrize(
    "source",
    [
        "{{",
        "x {{ .Prompt",
        "{{/* x }}",
        "{{- -}}",
        "{{-.Prompt}}",
        "{{ {{ .Prompt }} }}",
        "{{ end }}",
        "{{ else }}",
        "{{ if .System }}",
        "{{ nope .Prompt }}",
        "{{ range .X }}",
        "{{ if .System }}" * 200,
    ],
)
def test_bad_go_template(client, source):
    response = client.post("/api/generate", json={"model": "demo", "prompt": "x", "template": source})
    assert response.status_code == 500
    assert response.json["error"].startswith("template: ")


@pytest.mark.parametrize(
    "source",
    [
        "{{ " + " " * 60_000,
        "{{ " + " " * 60_000 + "x",
        "{{" + " " * 60_000 + "}}",
        "{{ " * 20_000,
        "{{- " * 10_000 + " -}}" * 5_000,
        "{{/* " * 10_000,
        "{{ if .System }}" + "{{" * 30_000,
        "{{" + "-" * 60_000 + "}}",
        "{{ if" + " " * 60_000 + "x }}",
        "{{ ." + "a" * 60_000 + " }}",
        "{{" * (MAX_CHARS + 1),
        "x" * 20_000_000,
    ],
    ids=lambda source: f"{source[:5]}-{len(source)}",
)
def test_hostile_templates_fail_fast(source):
    started = time.perf_counter()
    with pytest.raises(ApiError, match=r"^template: ") as caught:
        GoTemplate(source)
    assert time.perf_counter() - started < 10
    assert caught.value.status == 500
    assert len(str(caught.value)) < 200


def test_a_long_prompt_cannot_be_repeated_for_ever():
    template = GoTemplate("{{ .Prompt }}" * 5_000)
    assert len(template.render(Prompt="x" * 100)) == 500_000
    with pytest.raises(ApiError, match=f"more than {MAX_OUTPUT_CHARS} characters"):
        template.render(Prompt="x" * 10_000_000)

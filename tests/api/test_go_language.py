"""What Go's templates mean: the language of text/template as its documentation has it, and Ollama's functions."""

from __future__ import annotations

import contextlib
from datetime import date, timedelta
from random import Random

import pytest

from ollampi.api.errors import ApiError
from ollampi.api.go_template import GoTemplate

PIECES = [
    "{{ ", "}}", "{{- ", " -}}", "if ", "else ", "else if ", "end", "range ", "with ", "define `a`", "template `a` ",
    "block `a` .", "break", "continue", ".System", ".List", ".Map.c", ".None", ".", "$", "$x", "$i, $x := ", "$x := ",
    "$x = ", "(", ")", " ", "|", "eq ", "and ", "or ", "not ", "len ", "index ", "slice ", "print ", "printf `%s %d` ",
    "json ", "1", "-2.5", "`r`", '"s"', "nil", "true", "text", "\n", "/* c */", "{{ end }}", "{{ if .Yes }}",
    "{{ range .List }}", "{{ else }}", "{{ $x := .List }}", "{{ . }}", "{{ len $x }}",
]  # fmt: skip
VALUES = {
    "System": "S",
    "Prompt": "P",
    "Empty": "",
    "List": ["a", "b", "c"],
    "Map": {"b": 2.0, "a": [1.0, None], "c": {"x": "<y>"}},
    "None": None,
    "Whole": 3,
    "Number": 2.5,
    "Yes": True,
}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        # pipelines, literals, parentheses, chains
        ('{{ "a\\tb\\u00e4\\x41\\101\\"" }}', 'a\tbäAA"'),
        ("{{ `raw \\n }} text` }}", "raw \\n }} text"),
        ('{{ "}}" }}', "}}"),
        ("{{ 0x1F }} {{ -7 }} {{ 1.50 }} {{ true }}", "31 -7 1.5 true"),
        ("{{ .List | len | printf `%03d|%-3d|` 5 }}", "005|3  |"),
        ('{{ (index .Map "c").x }}', "<y>"),
        ("{{ .Map.c.x }} {{ $.Map.c.x }} {{ $m := .Map }}{{ $m.c.x }}", "<y> <y> <y>"),
        ("{{ .Nope }}|{{ .Map.nope }}|{{ if .Nope }}1{{ end }}", "<no value>|<no value>|"),
        # conditions
        ("{{ if .Empty }}1{{ else if .None }}2{{ else if .Whole }}3{{ else }}4{{ end }}", "3"),
        ("{{ if and .System .Prompt (not .Empty) }}1{{ end }}{{ or .Empty .None .Prompt }}", "1P"),
        ("{{ if or .Yes (index .List 99) }}lazy{{ end }}", "lazy"),
        ('{{ eq .System "x" "S" }} {{ ne .System "S" }} {{ eq .None nil }} {{ eq .None "" }}', "true false true false"),
        ("{{ lt 1 2 }}{{ le 2 2 }}{{ gt .Number 2.0 }}{{ ge `a` `b` }}", "truetruetruefalse"),
        # loops and variables
        ("{{ range .List }}[{{ . }}]{{ end }}", "[a][b][c]"),
        ("{{ range $i, $x := .List }}{{ $i }}{{ $x }}{{ . }},{{ end }}", "0aa,1bb,2cc,"),
        ("{{ range $x := .List }}{{ $x }}{{ $.System }}{{ end }}", "aSbScS"),
        ("{{ range $k, $v := .Map }}{{ $k }}={{ $v }};{{ end }}", "a=[1 <nil>];b=2;c=map[x:<y>];"),
        ("{{ range .Empty2 }}x{{ else }}none{{ end }}", "none"),
        ("{{ range .List }}{{ if eq . `b` }}{{ continue }}{{ end }}{{ . }}{{ end }}", "ac"),
        ("{{ range .List }}{{ if eq . `b` }}{{ break }}{{ end }}{{ . }}{{ end }}!", "a!"),
        ("{{ $last := `` }}{{ range .List }}{{ $last = . }}{{ end }}{{ $last }}", "c"),
        ("{{ $x := 1 }}{{ if true }}{{ $x := 2 }}{{ $x }}{{ end }}{{ $x }}", "21"),
        ("{{ with .Map.c }}{{ .x }}{{ else }}no{{ end }}{{ with .Empty }}x{{ else }}{{ .System }}{{ end }}", "<y>S"),
        ("{{ with $y := .System }}{{ $y }}{{ . }}{{ end }}{{ if $z := .Prompt }}{{ $z }}{{ end }}", "SSP"),
        ("{{ range $i, $_ := .List }}{{ if eq (len (slice $.List $i)) 1 }}last {{ . }}{{ end }}{{ end }}", "last c"),
        # functions
        ("{{ len .List }}{{ len `äb` }}{{ len .Map }}", "333"),
        ("{{ index .List 1 }}{{ slice .List 1 2 }}{{ slice `hello` 1 3 }}", "b[b]el"),
        ('{{ print 1 2 "a" 3 .None }}|{{ println "a" 1 }}', "1 2a3 <nil>|a 1\n"),
        (
            '{{ printf "%s %v %q %t %5.2f %x%%" .System .List "a\\"b" true .Number 255 }}',
            'S [a b c] "a\\"b" true  2.50 ff%',
        ),
        ("{{ json .Map }}", '{"a":[1,null],"b":2,"c":{"x":"\\u003cy\\u003e"}}'),
        ("{{ json .System }}{{ .Map | json | len }}", '"S"46'),
        # comments and templates
        ("{{ define `t` }}<{{ . }}>{{ end }}{{ template `t` .System }}{{ template `t` }}", "<S><<no value>>"),
        ("{{ block `b` .Prompt }}[{{ . }}]{{ end }}", "[P]"),
        ("a{{ /* b */ }}c {{- /* d */ -}} e", "ace"),
        ("{{ if\n.System\n}}x{{\tend\n}}", "x"),
    ],
)
def test_the_language(source, expected):
    assert GoTemplate(source).render(**VALUES) == expected


def test_numbers_are_written_as_by_go():
    numbers = [0.0, -1.0, 999999.0, 1000000.0, 1234567.0, 0.0001, 0.00001, 1e21, -2.5e-7, 123456.75]
    plain = GoTemplate("{{ range .X }}{{ . }} {{ end }}").render(X=numbers).split()
    assert plain == ["0", "-1", "999999", "1e+06", "1.234567e+06", "0.0001", "1e-05", "1e+21", "-2.5e-07", "123456.75"]
    encoded = GoTemplate("{{ json .X }}").render(X=numbers)
    assert encoded == "[0,-1,999999,1000000,1234567,0.0001,0.00001,1e+21,-2.5e-7,123456.75]"


def test_dates():
    today, yesterday = GoTemplate("{{ currentDate }} {{ yesterdayDate }}").render().split()
    assert date.fromisoformat(today) - date.fromisoformat(yesterday) == timedelta(days=1)
    assert GoTemplate('{{ printf "%s" currentDate }}').render() == today


@pytest.mark.parametrize(
    "source",
    [
        "{{ .System.Name }}",
        "{{ .None.Name }}",
        "{{ index .List 3 }}",
        "{{ index .List `a` }}",
        "{{ slice .List 2 1 }}",
        "{{ slice .Map 1 }}",
        "{{ len 3 }}",
        "{{ range .System }}{{ end }}",
        "{{ eq .System 1 }}",
        "{{ eq .List .List }}",
        "{{ lt .List .List }}",
        "{{ lt true false }}",
        "{{ eq .System }}",
        "{{ not }}",
        "{{ not 1 2 }}",
        "{{ printf 1 }}",
        "{{ printf `%s` }}",
        "{{ printf `%d` `x` }}",
        "{{ printf `x` 1 }}",
        "{{ template `gone` }}",
        "{{ define `a` }}{{ template `a` }}{{ end }}{{ template `a` }}",
        "{{ range .Many }}{{ range $.Many }}{{ end }}{{ end }}",
        "{{ $x := `0123456789` }}{{ range .Many }}{{ $x = print $x $x }}{{ end }}",
        "{{ range .Many }}{{ json $.Many }}{{ end }}",
    ],
)
def test_what_fails_while_rendering(source):
    template = GoTemplate(source)
    with pytest.raises(ApiError, match=r"^template: "):
        template.render(**VALUES, Many=["x" * 100] * 10_000)


@pytest.mark.parametrize(
    "source",
    [
        "{{ $x }}",
        "{{ if true }}{{ $x := 1 }}{{ end }}{{ $x }}",
        "{{ $x = 1 }}",
        "{{ $ := 1 }}",
        "{{ define `t` }}{{ $x }}{{ end }}",
        "{{ html .System }}",
        "{{ call .System }}",
        "{{ .System .Prompt }}",
        "{{ .System | .Prompt }}",
        "{{ nil }}",
        "{{ ( }}",
        "{{ (.System }}",
        "{{ .System) }}",
        "{{ | len }}",
        "{{ len | }}",
        '{{ "a }}',
        "{{ `a }}",
        '{{ "\\q" }}',
        '{{ "\\ud800" }}',
        "{{ 'a' }}",
        "{{ .System! }}",
        "{{ .Foo..Bar }}",
        '{{ .Foo"x" }}',
        "{{ eq.Foo }}",
        "{{ 1x }}",
        "{{ break }}",
        "{{ with .X }}{{ continue }}{{ end }}",
        "{{ if .X }}{{ else }}{{ else }}{{ end }}",
        "{{ if .X }}{{ define `x` }}{{ end }}{{ end }}",
        "{{ if }}{{ end }}",
        "{{ end if }}",
        "{{ template }}",
        "{{ define x }}{{ end }}",
        "{{ " + "(" * 200 + "1" + ")" * 200 + " }}",
        "{{ range .X }}" * 101 + "{{ end }}" * 101,
    ],
)
def test_what_cannot_be_parsed(source):
    with pytest.raises(ApiError, match=r"^template: ") as caught:
        GoTemplate(source)
    assert caught.value.status == 500
    assert len(str(caught.value)) < 400


def test_hundred_blocks_with_as_many_branches_are_fine():
    source = "{{ if .System }}" * 50 + "{{ ((((((((.Prompt)))))))) }}" + "{{ end }}" * 50
    assert GoTemplate(source).render(**VALUES) == "P"
    chain = "{{ if .Empty }}" + "{{ else if .Empty }}" * 2000 + "{{ else }}x{{ end }}"
    assert GoTemplate(chain).render(**VALUES) == "x"


def test_garbage_is_refused_or_rendered():
    """Templates thrown together from pieces of the language raise nothing but ApiError, and none hangs."""
    random = Random(7)
    rendered = 0
    for _ in range(3000):
        source = "".join(random.choices(PIECES, k=random.randint(1, 30)))
        with contextlib.suppress(ApiError):
            GoTemplate(source).render(**VALUES)
            rendered += 1
    assert 0 < rendered < 3000

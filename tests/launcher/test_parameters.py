"""Test the types of parameters."""

import pytest

from ollampi.launcher.parameters import parse_parameter
from ollampi.mpiruntime.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "values", "value"),
    [
        ("seed", ["1"], 1),
        ("top_p", ["0.5"], 0.5),
        ("top_p", ["1"], 1.0),
        ("stop", ["a"], ["a"]),
        ("use_mmap", ["True"], True),
    ],
)
def test_parse_parameter(name: str, values: list[str], value: object) -> None:
    parsed = parse_parameter(name, values)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("name", "values", "text"),
    [
        ("seed", ["x"], "seed takes a whole number, not 'x'"),
        ("seed", ["1", "2"], "seed takes a whole number, not '1 2'"),
        ("top_p", ["x"], "top_p takes a number, not 'x'"),
        ("use_mmap", ["1"], "use_mmap takes true or false, not '1'"),
        ("mood", ["x"], "unknown parameter 'mood': use one of .*temperature"),
    ],
)
def test_parse_parameter_refuses(name: str, values: list[str], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        parse_parameter(name, values)

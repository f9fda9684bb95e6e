"""Test the words against tables."""

from datetime import UTC, datetime

import pytest

from ollampi.launcher.words import (
    human_duration,
    human_size,
    human_time,
    processor,
    show_text,
    table,
    timings,
)


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 KB"),
        (1500, "1.5 KB"),
        (11_354_112, "11 MB"),
        (986_061_892, "986 MB"),
        (4_700_000_000, "4.7 GB"),
        (42_520_413_916, "42 GB"),
        (1_500_000_000_000, "1.5 TB"),
        (2_000_000_000_000_000, "2000 TB"),
    ],
)
def test_human_size(size_bytes: int, text: str) -> None:
    assert human_size(size_bytes) == text


@pytest.mark.parametrize(
    ("stamp", "text"),
    [
        ("2026-01-02T03:04:05Z", "Less than a second ago"),
        ("2026-01-02T03:04:04Z", "1 second ago"),
        ("2026-01-02T03:03:20.123456789Z", "44 seconds ago"),
        ("2026-01-02T03:03:00Z", "About a minute ago"),
        ("2026-01-02T02:34:05Z", "30 minutes ago"),
        ("2026-01-02T02:04:05Z", "About an hour ago"),
        ("2026-01-02T03:04:05+02:00", "2 hours ago"),
        ("2025-12-30T03:04:05Z", "3 days ago"),
        ("2025-12-12T03:04:05Z", "3 weeks ago"),
        ("2025-09-30T03:04:05Z", "3 months ago"),
        ("2022-09-30T03:04:05Z", "3 years ago"),
        ("2026-01-02T03:09:04Z", "4 minutes from now"),
        ("2318-04-13T02:51:20.5Z", "Forever"),
        ("0001-01-01T00:00:00Z", "Never"),
        ("", "Never"),
    ],
)
def test_human_time(stamp: str, text: str) -> None:
    assert human_time(stamp, datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)) == text


@pytest.mark.parametrize(
    ("duration_ns", "text"),
    [
        (0, "0s"),
        (850, "850ns"),
        (1_500, "1.5µs"),
        (210_000_000, "210ms"),
        (48_123_456, "48.123456ms"),
        (1_500_000_000, "1.5s"),
        (10**9, "1s"),
        (123_500_000_000, "2m3.5s"),
        (3_600_000_000_000, "1h0m0s"),
        (3_723_000_000_000, "1h2m3s"),
    ],
)
def test_human_duration(duration_ns: int, text: str) -> None:
    assert human_duration(duration_ns) == text


@pytest.mark.parametrize(
    ("size", "size_vram", "text"),
    [
        (100, 0, "100% CPU"),
        (100, 100, "100% GPU"),
        (100, 52, "48%/52% CPU/GPU"),
        (100, 120, "Unknown"),
        (0, 0, "100% CPU"),
    ],
)
def test_processor(size: int, size_vram: int, text: str) -> None:
    assert processor({"size": size, "size_vram": size_vram}) == text


def test_processor_of_a_server_that_leaves_size_vram_out() -> None:
    assert processor({"size": 7}) == "100% CPU"


def test_table_aligns_without_blanks_at_the_end() -> None:
    assert table([("NAME", "SIZE"), ("a-longer-name", "1 B")]) == "NAME             SIZE\na-longer-name    1 B\n"


def test_timings_match_the_walk_through() -> None:
    final = {
        "total_duration": 210_000_000,
        "load_duration": 1_000_000,
        "prompt_eval_count": 9,
        "prompt_eval_duration": 50_000_000,
        "eval_count": 2,
        "eval_duration": 150_000_000,
    }
    assert timings(final) == (
        "total duration:       210ms\n"
        "load duration:        1ms\n"
        "prompt eval count:    9 token(s)\n"
        "prompt eval duration: 50ms\n"
        "prompt eval rate:     180.00 tokens/s\n"
        "eval count:           2 token(s)\n"
        "eval duration:        150ms\n"
        "eval rate:            13.33 tokens/s\n"
    )


def test_timings_leave_out_what_the_server_left_out() -> None:
    assert timings({"eval_count": 2}) == "eval count:           2 token(s)\n"


SHOW = {
    "license": "MIT License\n\nCopyright someone\n\nPermission is granted",
    "parameters": 'stop                           "<|end|>"\ntemperature                    0.5',
    "system": "Be brief.",
    "details": {"family": "llama", "parameter_size": "2.7M", "quantization_level": "F32"},
    "model_info": {
        "general.architecture": "llama",
        "llama.context_length": 512,
        "llama.embedding_length": 192,
        "tokenizer.ggml.tokens": ["a-rather-long-token"] * 9,
    },
    "capabilities": ["completion", "tools"],
    "tensors": [{"name": "token_embd.weight", "type": "F32", "shape": [192, 2048]}],
}


def test_show_text_has_the_sections() -> None:
    assert show_text(SHOW) == (
        "  Model\n"
        "    architecture        llama\n"
        "    parameters          2.7M\n"
        "    context length      512\n"
        "    embedding length    192\n"
        "    quantization        F32\n"
        "\n  Capabilities\n    completion\n    tools\n"
        '\n  Parameters\n    stop           "<|end|>"\n    temperature    0.5\n'
        "\n  System\n    Be brief.\n"
        "\n  License\n    MIT License\n    Copyright someone\n    ...\n"
    )


def test_show_text_verbose_has_every_fact() -> None:
    text = show_text(SHOW, verbose=True)
    assert "\n  Metadata\n" in text
    assert "    llama.context_length      512\n" in text
    assert "    token_embd.weight    F32    [192, 2048]\n" in text
    assert max(map(len, text.splitlines())) < 120


def test_show_text_of_a_model_without_facts() -> None:
    assert show_text({"license": ["one", "two"]}) == "  License\n    one\n    two\n"

"""Print what drafts bring, from a text's own runs of tokens and from a grammar, where answers repeat their prompts.

    python benchmarks/drafts.py [--ranks 1 2] [--answers free schema] [--tokens 256] [--model FOLDER] [key=value ...]

Each prompt holds a piece of the standard library twice, the second time without its end, as an editor's request for a
slightly changed file does. The answer is free, or a list of records under a JSON schema, which the prompt holds.
Every answer is made with and without drafts, in turn; texts must be equal.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from support.servers import Server, endless_model, server  # noqa: E402

FILES = [argparse, statistics, tempfile, textwrap]
PIECE, TURNS = 1600, 3
RECORD: dict[str, Any] = {
    "type": "object",
    "properties": {
        "function_name": {"enum": dir(Path)},
        "number_of_arguments": {"type": "integer", "minimum": 0, "maximum": 9},
        "is_documented": {"type": "boolean"},
    },
    "required": ["function_name", "number_of_arguments", "is_documented"],
    "additionalProperties": False,
}
LIST = {"type": "array", "items": RECORD, "minItems": 24, "maxItems": 24}


def prompts() -> list[str]:
    """Return prompts of about 1,000 tokens."""
    texts = [Path(module.__file__).read_text()[4000 : 4000 + PIECE] for module in FILES]
    return [f"{text}\n\n{text[: PIECE // 4]}" for text in texts]


def lists() -> list[str]:
    """Return prompts that hold a list of records twice, the second time without its end."""
    names = dir(Path)[40:80]
    texts = []
    for start in range(4):
        values = [(name, i % (3 + start), i % 2 == 0) for i, name in enumerate(names[start : start + 16])]
        texts.append(json.dumps([dict(zip(RECORD["required"], value, strict=True)) for value in values]))
    return [f"records = {text}\n\nrecords = " for text in texts]


def speed(job: Server, model: str, prompt: str, tokens: int, form: Any, **options: Any) -> tuple[float, list[int]]:
    """Return the tokens per second of decoding and the answer's tokens."""
    body = {
        "model": model,
        "prompt": prompt,
        "stream": False,
        "format": form,
        "options": {"num_predict": tokens, "seed": 1, "num_ctx": 2048} | options,
    }
    status, reply = job.request("POST", "/api/generate", body, timeout_s=600)
    assert status == 200, reply
    return reply["eval_count"] / (reply["eval_duration"] / 1e9), reply["context"]


def measure(job: Server, model: str, asked: list[str], form: Any, tokens: int, temperature: float) -> None:
    """Print the ratio of speeds for each prompt."""
    ratios = []
    what = f"{'free' if form is None else 'schema'}, temperature {temperature}"
    for prompt in asked:
        plain, drafted = [], []
        for _ in range(TURNS):
            plain.append(speed(job, model, prompt, tokens, form, temperature=temperature, draft_num_predict=0))
            drafted.append(speed(job, model, prompt, tokens, form, temperature=temperature))
        same = all(text == plain[0][1] for _, text in plain + drafted)
        slow, fast = (statistics.median(s for s, _ in runs) for runs in (plain, drafted))
        ratios.append(fast / slow)
        print(f"  {what}: {slow:.0f} -> {fast:.0f} tokens/s, {fast / slow:.2f}, same text: {same}")
    print(f"  {what}: median ratio {statistics.median(ratios):.2f}", flush=True)


def main() -> None:
    """Measure what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--answers", nargs="+", choices=["free", "schema"], default=["free", "schema"])
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--model", type=Path)
    parser.add_argument("settings", nargs="*")
    args = parser.parse_args()
    for ranks in args.ranks:
        with tempfile.TemporaryDirectory() as folder:
            model = args.model or endless_model(Path(folder))
            with server(ranks, Path(folder), f"model={model}", *args.settings) as job:
                print(f"{ranks} ranks, {model.name}")
                for answers in args.answers:
                    asked, form = (prompts(), None) if answers == "free" else (lists(), LIST)
                    for temperature in (0.0, 0.8):
                        measure(job, model.name, asked, form, args.tokens, temperature)


if __name__ == "__main__":
    main()

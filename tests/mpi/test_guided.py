"""Drafts under a grammar on the ranks of a real MPI job: the answers of plain decoding."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.checkpoints import PROMPT
from support.grammars import END, write_speaker
from support.worlds import generate, run_engine

from ollampi.mpiruntime.communicator import Communicator
from ollampi.mpiruntime.engine_settings import EngineSettings
from ollampi.mpiruntime.pace import Pace
from ollampi.mpiruntime.request import Grammar, Sampling

pytestmark = pytest.mark.mpi
SETTINGS = EngineSettings(cache_tokens=1024, block_size=4, max_step_tokens=32)
SCHEMA = {
    "type": "array",
    "items": {"type": "object", "properties": {"name": {"enum": ["left", "right"]}}, "required": ["name"]},
    "minItems": 3,
    "maxItems": 3,
    "x-guidance": {"whitespace_pattern": ""},
}
GRAMMARS = [Grammar("schema", json.dumps(SCHEMA)), Grammar("regex", "(abcabd|abcabe){9}")]


def test_drafts_change_no_answer_under_a_grammar(
    comm: Communicator, shared_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pace, "price", lambda *_: 0.0)
    folder = shared_folder / "speaker"
    if comm.rank == 0:
        write_speaker(folder)
    comm.collect(b"written")
    samplings = [Sampling(temperature=0.0), Sampling(temperature=1.0, seed=5)]
    asked = [(grammar, sampling) for grammar in GRAMMARS for sampling in samplings]
    found = []
    for most in (0, None):
        messages = [
            generate(i, folder, PROMPT, grammar=g, sampling=s, stop_tokens=[END], max_tokens=80, max_drafts=most)
            for i, (g, s) in enumerate(asked)
        ]
        found.append(run_engine(comm, messages, SETTINGS))
    plain, drafted = found
    if plain is not None and drafted is not None:
        for i in range(len(asked)):
            assert drafted.tokens(i) == plain.tokens(i)
            assert drafted.last(i)["reason"] == plain.last(i)["reason"]
        assert len(drafted.log) < len(plain.log)

"""Models in GGUF files compute what transformers computes with the numbers that the files hold."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.checkpoints import ENCODERS, PROMPT, reference_greedy, reference_hidden, reference_logits, write_checkpoint
from support.gguf_files import MODELS, write_gguf
from support.worlds import embed, generate, lead, load_message, load_reports, logits_in_pieces, run_engine, world_logits

from ollampi.mpiruntime.engine_settings import EngineSettings
from ollampi.mpiruntime.errors import ModelError
from ollampi.mpiruntime.request import Sampling
from ollampi.mpiruntime.runner import Runner
from ollampi.mpiruntime.thread_world import run_threads

GREEDY = Sampling(temperature=0.0)
WIDE = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 32, "num_hidden_layers": 1}  # whole super-blocks


def held_folder(folder: Path, into: Path, held: dict[str, torch.Tensor]) -> Path:
    """Return a folder with the config of another and the numbers that a GGUF file of it holds."""
    into.mkdir()
    for name in ("config.json", "generation_config.json"):
        if (folder / name).is_file():
            (into / name).write_bytes((folder / name).read_bytes())
    save_file(
        {name: tensor.contiguous() for name, tensor in held.items()}, into / "model.safetensors", {"format": "pt"}
    )
    return into


@pytest.mark.parametrize("family", [name for name in MODELS if name not in (*ENCODERS, "gemma2_27b")])
def test_every_family_is_read_from_gguf_too(tmp_path: Path, family: str) -> None:
    folder = write_checkpoint(tmp_path / "m", **MODELS[family])
    write_gguf(tmp_path / "m.gguf", folder)
    expected = reference_logits(folder, PROMPT)
    for size in (1, 3, 8):
        assert (world_logits(size, tmp_path / "m.gguf", PROMPT, [9, 1, 7]) - expected).abs().max() <= 1e-4, (
            f"{family} on {size} ranks"
        )
        reports = run_threads(size, lambda c: load_reports(c, tmp_path / "m.gguf"))[0]
        assert reports is not None
        assert set.intersection(*(set(report.unread) for report in reports)) == set()
    messages = [generate(1, tmp_path / "m.gguf", PROMPT, sampling=GREEDY, max_tokens=6)]
    settings = EngineSettings(context_length=64, cache_tokens=64, block_size=4)
    recorder = run_threads(2, lambda c: run_engine(c, messages, settings))[0]
    assert recorder is not None
    assert recorder.tokens(1) == reference_greedy(folder, PROMPT, 6)


def test_an_encoder_is_read_from_gguf_too(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m", **ENCODERS["bert"])
    write_gguf(tmp_path / "m.gguf", folder)
    hidden = reference_hidden(folder, PROMPT)
    settings = EngineSettings(context_length=64, cache_tokens=64, block_size=4)
    for size in (1, 3, 8):
        messages = [embed(1, tmp_path / "m.gguf", [PROMPT], pooling="mean")]
        recorder = run_threads(size, lambda c, messages=messages: run_engine(c, messages, settings))[0]
        assert recorder is not None
        assert (recorder.embeddings(1)[0] - hidden.mean(0)).abs().max() <= 1e-4


KINDS = ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["llama3", "mixtral"])
def test_numbers_are_those_of_the_file(tmp_path: Path, kind: str, family: str) -> None:
    folder = write_checkpoint(tmp_path / "m", **{**MODELS[family], **WIDE})
    held = write_gguf(tmp_path / "m.gguf", folder, kind)
    expected = reference_logits(held_folder(folder, tmp_path / "held", held), PROMPT)
    for size in (1, 3):
        found = world_logits(size, tmp_path / "m.gguf", PROMPT, [9, 1, 7])
        assert (found - expected).abs().max() <= 1e-4 * max(1.0, float(expected.abs().max())), f"{size} ranks"


@pytest.mark.parametrize(
    ("kind", "formats"), [("Q8_0", ["q8"]), ("Q4_0", ["q4"]), ("Q6_K", ["q8"]), ("F16", ["float32"])]
)
def test_auto_keeps_what_the_file_has_on_any_number_of_ranks(tmp_path: Path, kind: str, formats: list[str]) -> None:
    folder = write_checkpoint(tmp_path / "m", **{**MODELS["llama3"], **WIDE})
    held = write_gguf(tmp_path / "m.gguf", folder, kind)
    exact = reference_logits(held_folder(folder, tmp_path / "held", held), PROMPT)
    text: list[int] = []
    for size in (1, 2, 4, 8):

        def work(runner: Runner) -> tuple[torch.Tensor, list[list[str]]]:
            reports = runner.lead_load(load_message(tmp_path / "m.gguf", quantize="auto"))
            return logits_in_pieces(runner, PROMPT, [17]), [report.formats for report in reports]

        found = run_threads(size, lambda c, work=work: lead(c, work))[0]
        assert found is not None
        assert found[1] == [formats] * size
        error = (found[0] - exact).abs().mean() / exact.abs().mean()
        assert error < (0.04 if kind != "F16" else 1e-5)  # activations of 8 bits
        chosen = found[0].argmax(1).tolist()
        assert not text or chosen == text
        text = chosen


def test_cuts_within_groups_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m", **{**MODELS["llama3"], **WIDE, "head_dim": 16})
    write_gguf(tmp_path / "m.gguf", folder, "Q8_0")
    messages = [generate(1, tmp_path / "m.gguf", PROMPT)]
    recorder = run_threads(8, lambda c: run_engine(c, messages, EngineSettings(context_length=64)))[0]
    assert recorder is not None
    assert recorder.last(1)["code"] == "model"
    assert "within groups of 32" in recorder.last(1)["message"]
    assert "quantize=none" in recorder.last(1)["message"]


def test_a_damaged_file_is_refused_by_name(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m")
    write_gguf(tmp_path / "m.gguf", folder)
    whole = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "m.gguf").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match=r"m\.gguf"):
        world_logits(2, tmp_path / "m.gguf", PROMPT, [17])

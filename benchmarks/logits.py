"""Print the worst difference of fp32 logits from transformers for N = 1..8 ranks (as threads), and greedy text.

    python benchmarks/logits.py [MODEL_FOLDER]

Without a folder: the demo model. Needs the test extra (transformers).
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import LlamaForCausalLM

from ollampi.mpiruntime.communicator import Communicator
from ollampi.mpiruntime.runner import Runner
from ollampi.mpiruntime.step import Chunk, Load, Step, Stop
from ollampi.mpiruntime.thread_world import run_threads
from ollampi.mpiruntime.world import survey

TOKENS, GREEDY, BLOCK = 256, 64, 16


def compute(comm: Communicator, folder: Path, tokens: list[int]) -> tuple[torch.Tensor, list[int]] | None:
    """Return all logits [T, V] and GREEDY further tokens on rank 0."""
    runner = Runner(comm, survey(comm))
    if comm.rank:
        runner.follow()
        return None
    runner.lead_load(Load(0, str(folder), "float32", 1024, 64, BLOCK))
    blocks = list(range(64))

    def step(piece: list[int], start: int) -> torch.Tensor:
        order = Step(0, [Chunk(piece, start, blocks[: -(-(start + len(piece)) // BLOCK)], len(piece))])
        runner.send(order)
        logits = runner.step(order).logits
        assert logits is not None
        return logits

    logits = torch.cat([step(tokens[:200], 0), step(tokens[200:], 200)])
    text = [int(logits[-1].argmax())]
    while len(text) < GREEDY:
        text.append(int(step(text[-1:], len(tokens) + len(text) - 1)[-1].argmax()))
    runner.lead(Stop())
    return logits, text


def main() -> None:
    """Print one line per world size."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent.parent / "conf/models/demo")
    reference = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(reference.config.vocab_size, (TOKENS,), generator=draw).tolist()
    with torch.no_grad():
        expected = reference(torch.tensor([tokens])).logits[0]
        text = reference.generate(
            torch.tensor([tokens]), max_new_tokens=GREEDY, min_new_tokens=GREEDY, do_sample=False, eos_token_id=None
        )[0, TOKENS:].tolist()
    print(f"{folder.name}: {TOKENS} tokens in two pieces, then {GREEDY} greedy tokens")
    for size in range(1, min(8, reference.config.num_attention_heads) + 1):
        found = run_threads(size, lambda comm: compute(comm, folder, tokens))[0]
        assert found is not None
        worst = (found[0] - expected).abs().max().item()
        print(f"N = {size}: worst difference {worst:.2e}, greedy text {'equal' if found[1] == text else 'DIFFERS'}")


if __name__ == "__main__":
    main()

"""Train the demo model that ships in `conf/models/demo` from text that ships with Python.

    python benchmarks/train_demo.py --out conf/models/demo

The text is the standard library of the running interpreter without its tests: sources, docstrings and the
language reference in `pydoc_data`. One file in twenty, chosen by the CRC of its name, is held out. Functions with
a docstring become short chats as well (docstring -> code), so that the chat template and the end token mean
something to the model.

The learning rate stays constant and falls only in the last quarter of the steps, so a run can be resumed
(`--state`) with another `--steps` and still be a run that anybody can make from the start.
"""

from __future__ import annotations

import argparse
import ast
import json
import math
import os
import sysconfig
import time
import zlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from demo_network import CONTEXT, EPS, HEAD_DIM, HEADS, KV_HEADS, LAYERS, MLP, ROPE_THETA, VOCAB, WIDTH, Model, rotary
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn

END_OF_TEXT, END, SYSTEM, USER, ASSISTANT = "<|endoftext|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"
SPECIAL = [END_OF_TEXT, END, SYSTEM, USER, ASSISTANT]
SKIPPED = {"site-packages", "test", "tests", "idle_test", "__pycache__", "lib2to3", "turtledemo"}
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)


def standard_library() -> list[tuple[str, str]]:
    """Return (name, text) of every module of the standard library but its tests, sorted by name."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = []
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if not SKIPPED & set(name.parts[:-1]) and path.stat().st_size < 2_000_000:
            files.append((str(name), path.read_text(encoding="utf-8", errors="ignore")))
    return files


def documentation(text: str) -> str:
    """Return the language reference inside `pydoc_data/topics.py` as plain text."""
    topics = ast.literal_eval(text[text.index("{") :])
    return "\n\n".join(topics[name] for name in sorted(topics))


def chats(text: str) -> list[str]:
    """Return one chat per short function with a docstring: the docstring asks, the code answers."""
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return []
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef):
            continue
        summary = (ast.get_docstring(node) or "").split("\n\n")[0].replace("\n", " ").strip()
        code = ast.get_source_segment(text, node)
        if code is None or not 20 < len(summary) < 200 or len(code) > 1500:
            continue
        code = "\n".join(line.removeprefix(" " * node.col_offset) for line in code.splitlines())
        found.append(f"{USER}\nWrite the function {node.name}. {summary}{END}\n{ASSISTANT}\n{code}{END}\n")
    return found


def corpus() -> tuple[list[str], list[str]]:
    """Return (training documents, held-out documents)."""
    train, held_out = [], []
    for name, text in standard_library():
        part = held_out if zlib.crc32(name.encode()) % 20 == 0 else train
        if name == os.path.join("pydoc_data", "topics.py"):
            part = train
            text = documentation(text)
        part.append(text)
        part.extend(chats(text))
    return train, held_out


def train_tokenizer(documents: list[str]) -> Tokenizer:
    """Return a byte-level BPE tokenizer with VOCAB entries that puts END_OF_TEXT before a prompt."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        documents,
        trainers.BpeTrainer(
            vocab_size=VOCAB,
            special_tokens=SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    start = tokenizer.token_to_id(END_OF_TEXT)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A", pair=f"{END_OF_TEXT} $A {END_OF_TEXT} $B", special_tokens=[(END_OF_TEXT, start)]
    )
    return tokenizer


def encode(tokenizer: Tokenizer, documents: list[str]) -> Tensor:
    """Return all documents as one int64 row of tokens, each begun by END_OF_TEXT."""
    rows = [np.asarray(e.ids, dtype=np.int64) for e in tokenizer.encode_batch(documents)]
    return torch.from_numpy(np.concatenate(rows))


@torch.no_grad()
def held_out_loss(model: nn.Module, tokens: Tensor, length: int = 1024, rows: int = 64) -> float:
    """Return the mean loss in nats per token over the first `rows` windows of the held-out text."""
    cos, sin = rotary(length)
    total = 0.0
    rows = min(rows, (len(tokens) - 1) // length)
    for i in range(rows):
        window = tokens[i * length : (i + 1) * length + 1]
        logits = model(window[None, :-1], cos, sin)
        total += F.cross_entropy(logits[0].float(), window[1:]).item()
    return total / rows


def learning_rate(step: int, steps: int) -> float:
    """Return the factor on the peak rate: a short rise, constant, a linear fall over the last quarter."""
    return min(1.0, (step + 1) / 50, max(0.02, (steps - step) / (0.25 * steps)))


def batch_at(tokens: Tensor, step: int, steps: int, batch_tokens: int) -> tuple[Tensor, Tensor]:
    """Return inputs and targets [B, T]: windows drawn by the step number, long ones in the last quarter."""
    length = 512 if step < 0.75 * steps else CONTEXT
    draw = torch.Generator().manual_seed(step)
    starts = torch.randint(len(tokens) - length - 1, (batch_tokens // length,), generator=draw)
    rows = torch.stack([tokens[s : s + length + 1] for s in starts.tolist()])
    return rows[:, :-1], rows[:, 1:]


def optimizers(model: Model, rate: float) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices of the layers and AdamW for the embedding and the norms."""
    matrices = [p for p in model.layers.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() == 1] + [model.embed_tokens.weight]
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.95), weight_decay=0.01),
    ]


def training_loss(model: nn.Module, inputs: Tensor, targets: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return the mean cross entropy in nats, computed with bf16 matrices."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(inputs, cos, sin)
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def train(model: Model, text: Tensor, held_out: Tensor, args: argparse.Namespace) -> None:
    """Train for args.steps steps; args.state keeps what a later call resumes from."""
    opts = optimizers(model, args.rate)
    first = 0
    if args.state and Path(args.state).exists():
        state = torch.load(args.state, weights_only=True)  # our own file, made by this script on this machine
        model.load_state_dict(state["model"])
        for o, s in zip(opts, state["optimizers"], strict=True):
            o.load_state_dict(s)
        first = state["step"]
    loss_of = torch.compile(training_loss, dynamic=False) if args.compile else training_loss
    began = time.perf_counter()
    for step in range(first, args.steps):
        for o in opts:
            for group in o.param_groups:
                group["lr"] = args.rate * learning_rate(step, args.steps)
        inputs, targets = batch_at(text, step, args.steps, args.batch_tokens)
        cos, sin = rotary(inputs.shape[1])
        loss = loss_of(model, inputs, targets, cos, sin)
        loss.backward()
        for o in opts:
            o.step()
            o.zero_grad(set_to_none=True)
        if step % 20 == 0:
            rate = args.batch_tokens * (step + 1 - first) / (time.perf_counter() - began)
            print(f"step {step} loss {loss.item():.3f} tokens/s {rate:.0f}", flush=True)
        if step % 200 == 199:
            print(f"step {step} held-out {held_out_loss(model, held_out, rows=16):.4f}", flush=True)
            save_state(args.state, model, opts, step + 1)


def save_state(path: str | None, model: Model, opts: list[torch.optim.Optimizer], step: int) -> None:
    """Write what `train` resumes from, or nothing where no path was given."""
    if path:
        state = {"model": model.state_dict(), "optimizers": [o.state_dict() for o in opts], "step": step}
        torch.save(state, path + ".part")
        os.replace(path + ".part", path)


def write_folder(out: Path, model: Model, tokenizer: Tokenizer) -> None:
    """Write the checkpoint (bf16 safetensors), configs and tokenizer in the Hugging Face layout."""
    out.mkdir(parents=True, exist_ok=True)
    tensors = {f"model.{n}": p.detach().to(torch.bfloat16).contiguous() for n, p in model.named_parameters()}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)
    start, end = tokenizer.token_to_id(END_OF_TEXT), tokenizer.token_to_id(END)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": WIDTH,
        "intermediate_size": MLP,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "vocab_size": VOCAB,
        "max_position_embeddings": CONTEXT,
        "rope_theta": ROPE_THETA,
        "rms_norm_eps": EPS,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "bos_token_id": start,
        "eos_token_id": [start, end],
        "torch_dtype": "bfloat16",
    }
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END,
        "model_max_length": CONTEXT,
        "chat_template": CHAT_TEMPLATE,
    }
    generation = {"bos_token_id": start, "eos_token_id": [start, end], "temperature": 0.7, "do_sample": True}
    for name, value in (
        ("config.json", config),
        ("tokenizer_config.json", tokenizer_config),
        ("generation_config.json", generation),
    ):
        (out / name).write_text(json.dumps(value, indent=2) + "\n")
    tokenizer.save(str(out / "tokenizer.json"))


@torch.no_grad()
def continuation(model: Model, tokenizer: Tokenizer, prompt: str, count: int) -> str:
    """Return the prompt and up to `count` greedy tokens after it."""
    ids = tokenizer.encode(prompt, add_special_tokens=not prompt.startswith("<|")).ids
    for _ in range(count):
        cos, sin = rotary(len(ids))
        token = int(model(torch.tensor([ids]), cos, sin)[0, -1].argmax())
        if token in (tokenizer.token_to_id(END), tokenizer.token_to_id(END_OF_TEXT)):
            break
        ids.append(token)
    return tokenizer.decode(ids)


def main() -> None:
    """Train, write the folder, and print the held-out loss of the bf16 weights with three samples."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("conf/models/demo"))
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--batch-tokens", type=int, default=8192)
    parser.add_argument("--rate", type=float, default=4e-3)
    parser.add_argument("--compile", action="store_true", help="half as fast again; needs a C++ compiler")
    parser.add_argument("--state", help="file to resume from and to keep the state in")
    args = parser.parse_args()
    torch.manual_seed(0)
    train_text, held_out_text = corpus()
    tokenizer = train_tokenizer(train_text)
    text, held_out = encode(tokenizer, train_text), encode(tokenizer, held_out_text)
    characters = sum(map(len, held_out_text))
    model = Model()
    size = sum(p.numel() for p in model.parameters())
    print(f"{size} parameters, {len(text)} training tokens, {len(held_out)} held-out tokens", flush=True)
    train(model, text, held_out, args)
    with torch.no_grad():
        for p in model.parameters():  # what is measured and sampled is what is written
            p.copy_(p.to(torch.bfloat16).float())
    write_folder(args.out, model, tokenizer)
    loss = held_out_loss(model, held_out)
    bits = loss * len(held_out) / characters / math.log(2)
    print(f"held-out loss {loss:.4f} nats per token, {bits:.3f} bits per character, perplexity {math.exp(loss):.2f}")
    for prompt in (
        "import os\n\n",
        "The with statement",
        f"{END_OF_TEXT}{USER}\nWrite the function close. Close the file.{END}\n{ASSISTANT}\n",
    ):
        print("-" * 80 + "\n" + continuation(model, tokenizer, prompt, 96))


if __name__ == "__main__":
    main()

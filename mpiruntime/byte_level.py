"""Build byte-level BPE tokenizers, whose words are split before they are merged in a way that has a name."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from ollampi.mpiruntime.errors import ModelError

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
_SLASHES = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class Split:
    """How words are split before merging: each regex cuts further what those before it left.

    whole_words: whether a word that is a token is taken as such, without merges; composed: whether text is composed
    (NFC) first; starts: whether a GGUF file that does not say so puts the start token before texts.
    """

    regexes: tuple[str, ...]
    whole_words: bool = False
    composed: bool = False
    starts: bool = False


_QWEN2 = Split((rf"{_ENDING}|{_BEFORE}\p{{L}}+|\p{{N}}|{_REST}",))
_LLAMA3 = Split((rf"{_ENDING}|{_BEFORE}\p{{L}}+|\p{{N}}{{1,3}}|{_REST}",))
_DIGITS = Split((r"\p{N}", _GPT2))
_WORDS = Split((_GPT2,))

_LLAMA3_NAMES = (
    "llama3",
    "llama-v3",
    "llama-bpe",
    "falcon3",
    "falcon-h1",
    "pixtral",
    "midm-2.0",
    "lfm2",
    "jina-v5-nano",
)
_QWEN35 = rf"{_ENDING}|{_BEFORE}[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT4O = rf"{_BEFORE}{_UPPER}*{_LOWER}+{_ENDING}?|{_BEFORE}{_UPPER}+{_LOWER}*{_ENDING}?|\p{{N}}{{1,3}}|{_SLASHES}"

# By their names in tokenizer.ggml.pre. The regexes are those of the tokenizer.json files which the names stand for, as
# llama.cpp (llama-vocab.cpp) and transformers (gguf_tokenizer_mapping.py) list them.
SPLITS = {
    "default": Split((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    **dict.fromkeys(_LLAMA3_NAMES, replace(_LLAMA3, whole_words=True, starts=True)),
    **dict.fromkeys(("dbrx", "smaug-bpe", "chatglm-bpe"), _LLAMA3),
    "qwen2": replace(_QWEN2, composed=True),
    "qwen35": Split((_QWEN35,), composed=True),
    **dict.fromkeys(("deepseek-r1-qwen", "stablelm2", "megrez"), _QWEN2),
    **dict.fromkeys(("gpt-2", "phi-2", "roberta-bpe", "mpt", "olmo", "jais", "gigachat"), _WORDS),
    **dict.fromkeys(("starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b"), _DIGITS),
    "tekken": Split(
        (rf"{_BEFORE}{_UPPER}*{_LOWER}+|{_BEFORE}{_UPPER}+{_LOWER}*|\p{{N}}|{_SLASHES}",), whole_words=True, starts=True
    ),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2"), Split((_GPT4O,))),
    "deepseek-v3": Split(
        (
            r"\p{N}{1,3}",
            r"[一-龥぀-ゟ゠-ヿ]+",
            r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
            r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        )
    ),
}


def byte_level(
    vocabulary: dict[str, int], merges: list[tuple[str, str]], split: Split, file: str, blank_first: bool = False
) -> Tokenizer:
    """Return a byte-level BPE tokenizer; blank_first puts a blank before texts. Raise ModelError that names `file`."""
    try:
        model = BPE(vocabulary, merges, ignore_merges=split.whole_words)
    except Exception as e:  # the library raises no narrower one
        raise ModelError(f"{file}: {str(e)[:200]}; copy the file again") from e
    tokenizer = Tokenizer(model)
    cuts: list[pre_tokenizers.PreTokenizer] = [pre_tokenizers.Split(Regex(text), "isolated") for text in split.regexes]
    cuts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    if blank_first:
        cuts = [pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    if split.composed:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer

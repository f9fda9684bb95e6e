"""The tokenizer of a GGUF file gives the ids of the tokenizer.json that it was converted from, and of llama.cpp."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from support.vocabularies import cut_by, gguf_of_bytes, gguf_of_pieces, random_texts, train_bytes, train_pieces
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import BertTokenizer
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

from ollampi.mpiruntime.byte_level import SPLITS
from ollampi.mpiruntime.errors import ModelError
from ollampi.mpiruntime.gguf_tokenizer import GgufVocabulary

LLAMA: dict[str, Any] = {
    "model_type": "bpe",
    "byte_fallback": True,
    "split_digits": True,
    "allow_whitespace_only_pieces": True,
    "character_coverage": 0.99,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
}
OWN = ["<sep>", "own_x", "\u2581\u2581"]
_NAMES = sorted(SPLITS)


def reference_of(name: str, vocabulary: dict[str, int], merges: list[str]) -> Tokenizer:
    """Return what a tokenizer.json would be: words are cut as transformers cuts them for that name."""
    digits = pre_tokenizers.Digits(individual_digits=True)
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    cuts: dict[str, list[pre_tokenizers.PreTokenizer]] = {"gpt-2": [gpt2], "starcoder": [digits, gpt2]}
    pairs = [tuple(merge.split(" ")) for merge in merges]
    tokenizer = Tokenizer(models.BPE(vocabulary, pairs, ignore_merges=name in ("llama-bpe", "tekken")))  # type: ignore[arg-type]
    regex = GGUF_PRE_TOKENIZER_SPLITS.get(name, "")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cuts.get(name) or [*cut_by(regex), last])
    if name.startswith("qwen"):
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(text, special=True, normalized=False) for text in ("<|bos|>", "<|im_end|>")])
    tokenizer.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    return tokenizer


@pytest.mark.parametrize(
    "name", ["gpt-2", "starcoder", "llama-bpe", "qwen2", "qwen35", "deepseek-r1-qwen", "tekken", "gpt-4o", "dbrx"]
)
def test_byte_level_ids_are_those_of_tokenizer_json(name: str) -> None:
    vocabulary, merges = train_bytes(*SPLITS[name].regexes)
    reference = reference_of(name, vocabulary, merges)
    tokenizer = GgufVocabulary(gguf_of_bytes(name, vocabulary, merges)).tokenizer()
    for text in [*random_texts(1000), "a<|im_end|>b <tool> <|bos|>", "[PAD1]"]:
        ids = reference.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode(text, add_special_tokens=False).ids == ids, text
        assert tokenizer.decode(ids, False) == reference.decode(ids, False)


def llama_cpp_of(folder: Path, metadata: dict[str, Any]) -> Callable[[str], list[int]]:
    """Return what makes ids of a text with llama.cpp, by the vocabulary alone; skip where it is not installed."""
    gguf, llama_cpp = pytest.importorskip("gguf"), pytest.importorskip("llama_cpp")
    writer = gguf.GGUFWriter(folder / "x.gguf", "llama")
    for add in (writer.add_context_length, writer.add_embedding_length, writer.add_block_count, writer.add_head_count):
        add(8)
    writer.add_feed_forward_length(8)
    writer.add_layer_norm_rms_eps(1e-5)
    for key, value in metadata.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        else:
            writer.add_string(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    options = llama_cpp.llama_model_default_params()
    options.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(str(folder / "x.gguf").encode(), options)
    vocabulary = llama_cpp.llama_model_get_vocab(model)
    room = (llama_cpp.llama_token * 4096)()

    def ids(text: str) -> list[int]:
        data = text.encode()
        return list(room[: llama_cpp.llama_tokenize(vocabulary, data, len(data), room, len(room), True, True)])

    return ids


@pytest.mark.parametrize("name", _NAMES)
def test_byte_level_ids_are_those_of_llama_cpp(tmp_path: Path, name: str) -> None:
    """But for marks, which its own way of writing two of the regexes takes for symbols, and for NFC, which it lacks."""
    metadata = gguf_of_bytes(name, *train_bytes(*SPLITS[name].regexes))
    reference = llama_cpp_of(tmp_path, metadata)
    tokenizer = GgufVocabulary(metadata).tokenizer()
    for text in random_texts(300, seed=3):
        plain = unicodedata.normalize("NFC", text)
        if any(unicodedata.category(char)[0] == "M" for char in plain):
            continue
        assert tokenizer.encode(plain).ids == reference(plain), plain


@pytest.mark.parametrize("own", [[], OWN], ids=["llama", "own"])
@pytest.mark.parametrize("blank", [True, False], ids=["blank", "none"])
def test_piece_ids_are_those_of_llama_cpp(tmp_path: Path, own: list[str], blank: bool) -> None:
    metadata = gguf_of_pieces(train_pieces(**LLAMA, add_dummy_prefix=blank, user_defined_symbols=own), own)
    metadata["tokenizer.ggml.add_space_prefix"] = blank
    reference = llama_cpp_of(tmp_path, metadata)
    tokenizer = GgufVocabulary(metadata).tokenizer()
    for text in random_texts(300, seed=4):
        if not (own and "\u2581" in text):  # llama.cpp looks for own pieces before it writes blanks in this way
            assert tokenizer.encode(text).ids == reference(text), text


@pytest.mark.parametrize("blank", [True, False], ids=["blank", "none"])
def test_piece_ids_are_those_of_sentencepiece(blank: bool) -> None:
    data = train_pieces(**LLAMA, add_dummy_prefix=blank)
    reference = sentencepiece.SentencePieceProcessor(model_proto=data)
    metadata = gguf_of_pieces(data) | {"tokenizer.ggml.add_space_prefix": blank}
    tokenizer = GgufVocabulary(metadata).tokenizer()
    tokenizer.encode_special_tokens = True
    for text in random_texts(1000, seed=5):
        assert tokenizer.encode(text).ids == reference.encode(text, add_bos=True), text


def bert_metadata(vocabulary: list[str]) -> dict[str, Any]:
    """Return a WordPiece vocabulary as llama.cpp's converter writes it: starts of words are marked instead."""
    special = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}
    marked = {text: text[2:] if text.startswith("##") else f"\u2581{text}" for text in vocabulary}
    return {
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.tokens": [text if text in special else marked[text] for text in vocabulary],
        "tokenizer.ggml.token_type": [3 if text in special else 1 for text in vocabulary],
        "tokenizer.ggml.unknown_token_id": 1,
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.seperator_token_id": 3,
    }


def test_word_pieces_are_those_of_bert() -> None:
    words = ["the", "fox", "a", "b", "##s", "##ox", "un", "##a", "##b", "f", "grusse", "世", "42", "!", "<", ">", "e"]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    reference = BertTokenizer(vocab={text: number for number, text in enumerate(vocabulary)})
    tokenizer = GgufVocabulary(bert_metadata(vocabulary)).tokenizer()
    for text in ["The fox", "foxs unab Grüße 世42!", "[MASK] a [SEP]", "", "zzz the", *random_texts(300, seed=6)]:
        assert tokenizer.encode(text).ids == reference(text)["input_ids"], text


@pytest.fixture(scope="module")
def small() -> dict[str, Any]:
    return gguf_of_bytes("qwen2", *train_bytes(*SPLITS["qwen2"].regexes, size=300))


def test_start_and_end_tokens_are_put_where_the_file_wants_them(small: dict[str, Any]) -> None:
    bos, eos = small["tokenizer.ggml.bos_token_id"], small["tokenizer.ggml.eos_token_id"]
    plain = GgufVocabulary(small).tokenizer().encode("a").ids
    flags = {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True}
    assert GgufVocabulary(small | flags).tokenizer().encode("a").ids == [bos, *plain, eos]
    llama3 = small | {"tokenizer.ggml.pre": "llama-bpe"}
    assert GgufVocabulary(llama3).tokenizer().encode("a").ids == [bos, *plain]
    assert GgufVocabulary(llama3 | {"tokenizer.ggml.add_bos_token": False}).tokenizer().encode("a").ids == plain


@pytest.mark.parametrize("kind", [1, 4, 5])
def test_what_ends_answers_is_special_whatever_its_type(small: dict[str, Any], kind: int) -> None:
    types = [*small["tokenizer.ggml.token_type"]]
    types[small["tokenizer.ggml.eos_token_id"]] = kind
    tokenizer = GgufVocabulary(small | {"tokenizer.ggml.token_type": types}).tokenizer()
    added = tokenizer.get_added_tokens_decoder()
    assert added[small["tokenizer.ggml.eos_token_id"]].special


def test_ends_and_templates(small: dict[str, Any]) -> None:
    more = {"tokenizer.chat_template": "x", "tokenizer.chat_template.tool_use": "y", "tokenizer.chat_template.odd": 5}
    vocabulary = GgufVocabulary(small | more | {"tokenizer.ggml.eos_token_id": 0, "tokenizer.ggml.eot_token_id": 1})
    assert vocabulary.ends == [0, 1, small["tokenizer.ggml.eos_token_id"]]  # <|im_end|> ends answers as well
    assert vocabulary.templates() == {"default": "x", "tool_use": "y"}
    assert vocabulary.text(vocabulary.bos) == "<|bos|>"


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "model": ({"model": "gemma4"}, r"ggml\.model is 'gemma4'; known are llama, bert, gpt2"),
    "no model": ({"model": None}, r"ggml\.model is missing: the file has no tokenizer; known are"),
    "pre": (
        {"pre": "no-such"},
        r"ggml\.pre is 'no-such': fetch a newer file of the model, or convert it; known are .*, llama-bpe, ",
    ),
    "no pre": ({"pre": None}, r"ggml\.pre is missing, as in files of older converters: fetch a newer file"),
    "tokens": ({"tokens": 5}, r"ggml\.tokens must be a list"),
    "no tokens": ({"tokens": []}, r"ggml\.tokens must be a list"),
    "number": ({"tokens": ["a", 5]}, r"ggml\.tokens must be a list of str"),
    "twice": ({"tokens": ["a", "b", "a"]}, r"ggml\.tokens has 'a' twice"),
    "too many": ({"tokens": [str(number) for number in range((1 << 20) + 1)]}, r"ggml\.tokens has 1048577 entries"),
    "types": ({"token_type": [1]}, r"ggml\.token_type has 1 values for 304 tokens"),
    "merges": ({"merges": ["ab"]}, r"ggml\.merges must hold two parts"),
    "unknown merge": ({"merges": ["no such"]}, r"ggml\.merges: "),
    "bos": ({"bos_token_id": 304}, r"ggml\.bos_token_id is 304; it must be one of 304 tokens"),
    "eos": ({"eos_token_id": -1}, r"ggml\.eos_token_id is -1"),
    "eos text": ({"eos_token_id": "1"}, r"ggml\.eos_token_id is '1'"),
    "flag": ({"add_bos_token": 1}, r"ggml\.add_bos_token is 1; it must be true or false"),
    "no bos": ({"add_bos_token": True, "bos_token_id": None}, r"ggml\.bos_token_id is missing"),
    "scores": ({"model": "llama", "scores": [0.0]}, r"ggml\.scores has 1 values"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_used_is_named(small: dict[str, Any], name: str) -> None:
    changes, message = BAD[name]
    metadata = small | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    metadata = {key: value for key, value in metadata.items() if value is not None}
    with pytest.raises(ModelError, match=message):
        GgufVocabulary(metadata).tokenizer()

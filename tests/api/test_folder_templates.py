"""Check the chat templates that a folder has under names, and the special tokens that templates may use."""

from __future__ import annotations

from support.files import fill
from transformers import AutoTokenizer

from ollampi.api.store.catalog import Store
from ollampi.api.text_source import folder_source


def test_named_templates(make_model, tmp_path):
    folder = make_model(tmp_path / "m")
    entries = [
        {"name": "default", "template": "d"},
        {"name": "tool_use", "template": "t"},
        {"name": "rag", "template": "r"},
    ]
    fill(folder, {"tokenizer_config.json": {"chat_template": entries}})
    source = folder_source(folder, {})
    assert (source.template_for(tools=False), source.template_for(tools=True)) == ("d", "t")
    reference = AutoTokenizer.from_pretrained(folder)
    assert (reference.get_chat_template(), reference.get_chat_template(tools=[{}])) == ("d", "t")
    fill(folder / "additional_chat_templates", {"tool_use.jinja": b"T"})
    fill(folder, {"chat_template.jinja": b"D"})
    before = Store([tmp_path]).find("m").digest
    source = folder_source(folder, {})
    assert (source.template_for(tools=False), source.template_for(tools=True)) == ("D", "T")
    reference = AutoTokenizer.from_pretrained(folder)
    assert (reference.get_chat_template(), reference.get_chat_template(tools=[{}])) == ("D", "T")
    fill(folder / "additional_chat_templates", {"tool_use.jinja": b"changed"})
    assert Store([tmp_path]).find("m").digest != before


def test_special_tokens_by_name(make_model, tmp_path):
    config = {
        "bos_token": "<|im_start|>",
        "pad_token": {"content": "<|end|>"},
        "extra_special_tokens": {"image_token": "<image>"},
        "additional_special_tokens": ["<|im_end|>", {"content": "<|end|>"}, 5],
        "add_bos_token": False,
    }
    folder = fill(make_model(tmp_path / "m"), {"tokenizer_config.json": config})
    assert folder_source(folder, {}).names == {
        "bos_token": "<|im_start|>",
        "eos_token": "",
        "pad_token": "<|end|>",
        "image_token": "<image>",
        "additional_special_tokens": ["<|im_end|>", "<|end|>"],
    }

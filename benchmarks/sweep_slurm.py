from __future__ import annotations


def submit(*a): ...

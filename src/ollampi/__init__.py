"""Serve language models over MPI ranks behind Ollama's API."""

__version__ = "0.1.0"

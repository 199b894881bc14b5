"""Critiques from the language head: requests, prompts, the writer and its worker process. No vllm here."""

"""Critiques from the language head. Only ``engine`` imports vllm."""

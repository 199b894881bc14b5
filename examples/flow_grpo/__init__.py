"""A small Flow-GRPO run against the service: ``README.md`` beside this file says how it goes and what came of it."""

"""A pytest plugin: property tests that say yes or no, and say the same in every run."""

from __future__ import annotations

from hypothesis import HealthCheck, Phase, settings

settings.register_profile(
    "mutants",
    database=None,
    deadline=None,
    derandomize=True,
    max_examples=50,
    phases=(Phase.explicit, Phase.generate),  # a smaller example of a failure is of no use here
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("mutants")

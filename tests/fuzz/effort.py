"""How many examples a test tries, here and under `make fuzz`."""

from hypothesis import HealthCheck, settings


def effort(examples: int) -> settings:
    """So many in the suite, always the same ones; a hundred times as many, always new ones, in the profile `fuzz`."""
    long = settings.get_current_profile_name() == "fuzz"
    return settings(
        max_examples=examples * 100 if long else examples,
        derandomize=not long,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )

"""`make fuzz` runs these tests a hundred times longer, from a new seed each time; in the suite they repeat."""

from hypothesis import settings

settings.register_profile("fuzz", max_examples=10_000, derandomize=False, print_blob=True)

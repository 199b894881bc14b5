"""A synthetic world in which the truth about every edit is known by construction, deterministic by seed and index."""

from .generate import World
from .tasks import HELD_OUT, SEEN

__all__ = ["HELD_OUT", "SEEN", "World"]

"""Simulated annotators, who judge the world's edits: they disagree, and more about some edits than about others.

An annotator reads a label with a Gaussian error whose standard deviation, the doubt about the edit, can be seen in the
edit itself: everybody recognizes an unchanged image, while opinions differ on an instruction that is half done or on
changes that nobody asked for; some overlook a slight flaw, others mind it. Edits are compared by these readings, so
that two annotators agree on edits that are far apart and may disagree on edits that are close.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

FOLLOWING_DOUBT: Mapping[str, float] = {
    "right": 0.25,
    "partly_right": 0.8,
    "wrong_result": 0.5,
    "over_edited": 1.0,
    "wrong_object": 0.4,
    "unchanged": 0.15,
}
"""Doubt about instruction following by an edit's quality, in units of the label."""

QUALITY_DOUBT: Mapping[int, float] = {4: 0.2, 3: 0.8, 2: 0.5, 1: 0.25}
"""Doubt about visual quality by its label, in units of the label."""


def read(label: float, doubt: float, random: Random) -> float:
    """One annotator's reading of a label, to three digits, so that two edits are hardly ever equal."""
    return round(label + doubt * random.gauss(0.0, 1.0), 3)

"""Candidates whose scores are known beforehand: no two are alike, and a wrong reward shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from PIL import Image

from jrm_service.scoring.fakes import FakePreparer, fake_score
from jrm_service.scoring.types import Candidate

_PREPARER = FakePreparer()


@dataclass(frozen=True)
class KnownGroup:
    """Edits of one source, as PPM files, that nobody else sends: a cache never has them unless they are sent twice.

    ``number`` names the group, ``edits`` how many there are; ``side`` is that of the images, in pixels.
    """

    number: int
    edits: int
    side: int = 32

    @property
    def instruction(self) -> str:
        """The text of the group."""
        return f"make square {self.number} blue"

    @cached_property
    def source(self) -> bytes:
        """The source, a file."""
        return _ppm(self.side, self.number, 0)

    @cached_property
    def edited(self) -> Sequence[bytes]:
        """The edits, as files."""
        return [_ppm(self.side, self.number, edit + 1) for edit in range(self.edits)]

    @cached_property
    def rewards(self) -> Sequence[float]:
        """What a FakeBackend gives each edit, to the last bit."""
        return [fake_score(candidate).reward for candidate in self._candidates()]

    @property
    def tokens(self) -> int:
        """What the group counts against the budget of a batch."""
        return sum(candidate.tokens for candidate in self._candidates())

    def _candidates(self) -> Sequence[Candidate]:
        images = [_PREPARER.image(self._pixels(edit)) for edit in range(self.edits + 1)]
        return [_PREPARER.candidate([images[0]], edit, self.instruction) for edit in images[1:]]

    def _pixels(self, edit: int) -> Image.Image:
        return Image.frombytes("RGB", (self.side, self.side), _stamp(self.side, self.number, edit))


def _stamp(side: int, number: int, edit: int) -> bytes:
    stamp = number.to_bytes(8, "little") + edit.to_bytes(4, "little")
    return stamp.ljust(3 * side * side, b"\x80")


def _ppm(side: int, number: int, edit: int) -> bytes:
    return b"P6\n%d %d\n255\n" % (side, side) + _stamp(side, number, edit)

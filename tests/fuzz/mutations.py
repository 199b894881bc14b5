"""Strategies that damage files: as bytes, and as the pieces that their containers are made of."""

from collections.abc import Callable

from hypothesis import strategies as st

from fuzz.pieces import closed, opened, pieces, sealed

Draw = Callable[[st.SearchStrategy], object]

# Lengths and sizes at which programs turn around, in as many bytes as a field may have.
NUMBERS = [
    0,
    1,
    2,
    3,
    0x7F,
    0x80,
    0xFF,
    0x100,
    0x3FFF,
    0x4000,
    0x7FFF,
    0xFFFF,
    0x10000,
    0xFFFFFF,
    0x7FFFFFFF,
    2**32 - 1,
]


@st.composite
def damaged(draw: Draw, seeds: list[bytes]) -> bytes:
    """A file of ``seeds`` with a few changes, some of which the container's own checks do not see."""
    file = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(1, 3))):
        change = draw(st.sampled_from([changed_bytes, changed_pieces, changed_scanlines]))
        file = change(draw, file, seeds)
        if draw(st.booleans()):
            file = sealed(file)
    return file


def changed_bytes(draw: Draw, file: bytes, _seeds: list[bytes] = ()) -> bytes:
    """One flip, cut, insertion, repetition or number, at any place."""
    at = draw(st.integers(0, len(file)))
    end = draw(st.integers(at, min(len(file), at + 40)))
    match draw(st.sampled_from(["flip", "number", "set", "cut", "truncate", "insert", "repeat"])):
        case "flip" if at < len(file):
            return file[:at] + bytes([file[at] ^ 1 << draw(st.integers(0, 7))]) + file[at + 1 :]
        case "number":
            width = draw(st.sampled_from([1, 2, 3, 4]))
            number = draw(st.sampled_from(NUMBERS)) % 256**width
            return file[:at] + number.to_bytes(width, draw(st.sampled_from(["big", "little"]))) + file[at + width :]
        case "set":
            return file[:at] + bytes([draw(st.integers(0, 255))]) * (end - at) + file[end:]
        case "cut":
            return file[:at] + file[end:]
        case "truncate":
            return file[:at]
        case "insert":
            return file[:at] + draw(st.binary(min_size=1, max_size=12)) + file[at:]
        case _:
            return file[:end] + file[at:end] * draw(st.integers(1, 50)) + file[end:]


def changed_pieces(draw: Draw, file: bytes, seeds: list[bytes]) -> bytes:
    """One piece moved, dropped, repeated, changed inside, or taken from another file of any format."""
    parts = pieces(file)
    if not parts:
        return file
    places = st.sampled_from(range(min(1, len(parts) - 1), len(parts)))  # the first says which format it is
    at, other = draw(places), draw(places)
    match draw(st.sampled_from(["swap", "drop", "repeat", "change", "splice", "tail"])):
        case "swap":
            parts[at], parts[other] = parts[other], parts[at]
        case "drop":
            del parts[at]
        case "repeat":
            parts[at:at] = [parts[other]] * draw(st.integers(1, 200))
        case "change":
            parts[at] = changed_bytes(draw, parts[at])
        case "splice":
            foreign = pieces(draw(st.sampled_from(seeds)))
            parts[at:other] = [draw(st.sampled_from(foreign))] if foreign else []
        case "tail":
            foreign = pieces(draw(st.sampled_from(seeds)))
            parts[at:] = foreign[draw(st.integers(0, len(foreign))) :]
    return b"".join(parts)


def changed_scanlines(draw: Draw, file: bytes, _seeds: list[bytes]) -> bytes:
    """The pixels of a PNG changed below its compression; other files changed anywhere."""
    parts = pieces(file)
    for at, part in enumerate(parts):
        if (scanlines := opened(part)) is not None:
            parts[at] = closed(changed_bytes(draw, scanlines))
            return b"".join(parts)
    return changed_bytes(draw, file)

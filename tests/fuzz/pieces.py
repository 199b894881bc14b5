"""Image files cut where their containers are cut, so that mutations get past the first check."""

import struct
import zlib

PNG = b"\x89PNG\r\n\x1a\n"


def pieces(file: bytes) -> list[bytes]:
    """The chunks, segments or header words of a file; joined, they are the file again."""
    if file.startswith(PNG):
        return [PNG, *_cut(file, len(PNG), lambda at: 12 + int.from_bytes(file[at : at + 4]))]
    if file.startswith(b"RIFF"):
        return [
            file[:12],
            *_cut(file, 12, lambda at: 8 + (int.from_bytes(file[at + 4 : at + 8], "little") + 1) // 2 * 2),
        ]
    if file.startswith(b"\xff\xd8"):
        return [file[:2], *_cut(file, 2, lambda at: _segment(file, at))]
    return _cut(file, 0, lambda at: file.find(b"\n", at) + 1 - at if at < 20 else len(file))


def _cut(file: bytes, start: int, length_at) -> list[bytes]:
    cut = []
    while start < len(file):
        end = start + max(1, length_at(start))
        cut.append(file[start:end])
        start = end
    return cut


def _segment(file: bytes, at: int) -> int:
    """A segment as its length says; a start of scan with its data."""
    if file[at + 1 : at + 2] == b"\xda":
        end = at + 2
        while (end := file.find(b"\xff", end)) >= 0 and file[end + 1 : end + 2] in (b"\0", *RESTARTS):
            end += 2
        return (end if end >= 0 else len(file)) - at
    return 2 + int.from_bytes(file[at + 2 : at + 4]) if file[at : at + 1] == b"\xff" else 1


RESTARTS = tuple(bytes([marker]) for marker in range(0xD0, 0xD8))


def sealed(file: bytes) -> bytes:
    """The file with what its container promises about its own bytes made true: checksums of PNG, length of WebP."""
    if file.startswith(b"RIFF"):
        return file[:4] + struct.pack("<I", max(0, len(file) - 8)) + file[8:]
    if file.startswith(PNG):
        return b"".join([PNG, *(_sealed_chunk(chunk) for chunk in pieces(file)[1:])])
    return file


def _sealed_chunk(chunk: bytes) -> bytes:
    if len(chunk) < 12:
        return chunk
    body = chunk[4:-4]
    return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))


def opened(chunk: bytes) -> bytes | None:
    """The scanlines of a PNG's one IDAT chunk, or None."""
    try:
        return zlib.decompress(chunk[8:-4]) if chunk[4:8] == b"IDAT" else None
    except zlib.error:
        return None


def closed(scanlines: bytes) -> bytes:
    """An IDAT chunk of these scanlines."""
    body = b"IDAT" + zlib.compress(scanlines)
    return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))

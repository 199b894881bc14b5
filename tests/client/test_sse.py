import pytest
from hypothesis import given
from hypothesis import strategies as st

from jrm_client.sse import Decoder


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"data: a\n\ndata: b\n\n", [b"a", b"b"]),
        (b"data: a\r\n\r\ndata: b\r\rdata: c\n\r\n", [b"a", b"b", b"c"]),
        (b"data:a\n\ndata:  a\n\n", [b"a", b" a"]),
        (b"data: a\ndata: b\n\n", [b"a\nb"]),
        (b"data\n\ndata:\n\n", [b"", b""]),
        (b": ping\n\nevent: x\nid: 1\nretry: 5\ndata: a\ndatum: b\n: c\n\n", [b"a"]),
        (b"event: x\n\n\n\n", []),
        (b"data: cut off", []),
        (b"data: a\n\ndata: cut off\n", [b"a"]),
        (b"\xef\xbb\xbfdata: a\n\n", [b"a"]),
        (b"", []),
        ('data: "\u2028\x85\x0b"\n\n'.encode(), ['"\u2028\x85\x0b"'.encode()]),
    ],
)
def test_what_is_an_event(stream: bytes, expected: list[bytes]) -> None:
    assert Decoder().feed(stream) == expected


@given(
    pieces=st.lists(
        st.sampled_from(
            [b"data: a", b"data", b":", b"b", b"\r", b"\n", b"\r\n", b"\n\n", b"id: 1", b"\xef\xbb\xbf", b""]
        )
    )
)
def test_chunks_may_begin_and_end_anywhere(pieces: list[bytes]) -> None:
    stream = b"".join(pieces)
    whole, parts, bytewise = Decoder(), Decoder(), Decoder()
    expected = whole.feed(stream)
    assert [data for piece in pieces for data in parts.feed(piece)] == expected
    assert [data for byte in stream for data in bytewise.feed(bytes([byte]))] == expected

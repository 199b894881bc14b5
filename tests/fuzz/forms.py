"""multipart bodies that are nearly requests, and whole ones with anything in them."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from hypothesis import strategies as st

from fuzz import corpus

Draw = Callable[[st.SearchStrategy], object]

_RED, _BLUE = ((corpus.CORPUS / "images/accepted" / file).read_bytes() for file in ("rgb.png", "rgb.ppm"))
_DOCUMENT = b'{"groups":[{"source":"part:a","instruction":"x","edits":["part:b","part:a"]}],"timeout_ms":30000}'


@dataclass(frozen=True)
class Part:
    """One part: the lines of its head, and its content."""

    head: tuple[bytes, ...]
    content: bytes


def part(name: bytes, content: bytes, *more: bytes) -> Part:
    return Part((b'Content-Disposition: form-data; name="%b"' % name, *more), content)


@dataclass(frozen=True)
class Form:
    """A body to be written out; ``closing`` ends it, ``line`` ends its lines."""

    parts: tuple[Part, ...]
    boundary: bytes = b"xYzZY"
    preamble: bytes = b""
    closing: bytes = b"--\r\n"
    line: bytes = b"\r\n"

    def body(self) -> bytes:
        delimiter = b"--" + self.boundary
        written = [
            b"".join(
                [delimiter, self.line, *(line + self.line for line in one.head), self.line, one.content, self.line]
            )
            for one in self.parts
        ]
        return b"".join([self.preamble, *written, delimiter, self.closing])


FORMS = [
    Form((part(b"source", _RED), part(b"instruction", b"x"), part(b"edited", _BLUE), part(b"edited", _RED))),
    Form((part(b"request", _DOCUMENT, b"Content-Type: application/json"), part(b"a", _RED), part(b"b", _BLUE))),
]
_HEADS = st.sampled_from(
    [
        (),
        (b"Content-Disposition: form-data",),
        (b"Content-Disposition: attachment; name=source",),
        (b"content-disposition:form-data;name=source",),
        (b'Content-Disposition: form-data; name="source"; filename="../../etc/passwd"',),
        (b"Content-Disposition: form-data; name*=utf-8''source",),
        (b'Content-Disposition: form-data; name="\xff\xfe"',),
        (b'Content-Disposition: form-data; name="sou\\"rce"',),
        (b'Content-Disposition: form-data; name="a',),
        (b"Content-Disposition: form-data; name=" + b"a" * 5000,),
        (b'Content-Disposition: form-data; name="' + b";" * 900 + b'"',),
        (b"Content-Disposition: form-data; name=source", b"Content-Disposition: form-data; name=edited"),
        (b"Content-Disposition: form-data; name=source", *[b"x: y"] * 20),
        (b"Content-Disposition: form-data; name=source", b"Content-Transfer-Encoding: base64"),
        (b"Content-Disposition : form-data; name=source",),
        (b": x",),
        (b"\0: \0",),
        (b" folded",),
    ]
)
_NAMES = st.sampled_from(
    [b"source", b"edited", b"instruction", b"request", b"a", b"b", b"timeout_ms", b"", b"extra", b"Source"]
)
_CONTENTS = st.one_of(
    st.sampled_from(
        [b"", _RED, _BLUE, _DOCUMENT, b"{}", b"[" * 5000, b"\xff", b"x" * 10_000, b"0", b"1" * 5000, b"NaN"]
    ),
    st.sampled_from([b"\r\n--xYzZY", b"\r\n--xYzZY-", b"\r\n--xYzZ", b"--xYzZY--", b"\r\n--xYzZY--", b"\r\n", b"\r"]),
    st.binary(max_size=30),
)
_PIECES = st.sampled_from(
    [
        b"",
        b"\r\n",
        b"\n",
        b"--",
        b"--\r\n",
        b"\r\n--\r\n",
        b"-",
        b"-\r\n",
        b"preamble\r\n",
        b"--\r\nepilogue",
        b"\r\n\r\n",
    ]
)
_BOUNDARIES = st.sampled_from(
    [b"b", b"", b"-", b"--", b" ", b"'()+_,-./:=?", b"x" * 70, b"x" * 300, b"\xff\xfe", b"a;b", b'a"b', b"a b"]
)


@st.composite
def forms(draw: Draw) -> tuple[bytes, bytes]:
    """(content type, body) of a form with up to three changes."""
    form = draw(st.sampled_from(FORMS))
    for _ in range(draw(st.integers(0, 3))):
        form = _changed(draw, form)
    declared = draw(st.sampled_from([form.boundary] * 9 + [None])) or draw(_BOUNDARIES)
    return content_type(draw, declared), form.body()


def content_type(draw: Draw, boundary: bytes) -> bytes:
    quoted = [
        b'multipart/form-data; boundary="%b"',
        b"Multipart/Form-Data;charset=utf-8;BOUNDARY=%b",
        b"multipart/form-data; boundary=%b; boundary=c",
    ]
    odd = [
        b"multipart/form-data; boundary*=utf-8''%b",
        b"multipart/form-data; boundary*0=%b",
        b"multipart/form-data;;; boundary=%b",
        b"multipart/mixed; boundary=%b",
    ]
    return draw(st.sampled_from([b"multipart/form-data; boundary=%b"] * 12 + quoted + odd)) % boundary


def _changed(draw: Draw, form: Form) -> Form:
    parts = list(form.parts)
    at = draw(st.integers(0, len(parts) - 1)) if parts else 0
    kind = draw(
        st.sampled_from(
            ["head", "rename", "content", "drop", "repeat", "swap", "boundary", "preamble", "closing", "line"]
        )
    )
    if kind in ("boundary", "preamble", "closing", "line"):
        return replace(form, **{kind: draw({"boundary": _BOUNDARIES}.get(kind, _PIECES))})
    if not parts:
        return form
    match kind:
        case "head":
            parts[at] = replace(parts[at], head=draw(_HEADS))
        case "rename":
            parts[at] = part(draw(_NAMES), parts[at].content)
        case "content":
            parts[at] = replace(parts[at], content=draw(_CONTENTS))
        case "drop":
            del parts[at]
        case "repeat":
            parts[at:at] = [parts[at]] * draw(st.integers(1, 70))
        case _:
            parts[0], parts[at] = parts[at], parts[0]
    return replace(form, parts=tuple(parts))


_BOUNDARY_CHARACTERS = b"abcXYZ019'()+_,-./:=?"


@st.composite
def whole_forms(draw: Draw) -> tuple[bytes, bytes, list[bytes]]:
    """(content type, body, contents of its files) of a form as in RFC 2046, its files full of near boundaries."""
    boundary = bytes(draw(st.lists(st.sampled_from(_BOUNDARY_CHARACTERS), min_size=1, max_size=70)))
    delimiter = b"\r\n--" + boundary
    near = [delimiter[:at] for at in range(len(delimiter))] + [delimiter[2:-1], b"\r\n", b"\0", b"x"]
    contents = draw(
        st.lists(
            st.lists(st.sampled_from(near) | st.binary(max_size=9), max_size=9).map(b"".join), min_size=2, max_size=5
        )
    )
    clean = [content for content in contents if delimiter not in b"\r\n" + content + b"\r\n"]
    files = [part(b"edited", content, b"Content-Type: application/octet-stream") for content in clean]
    whole = Form((part(b"source", b"s"), *files, part(b"instruction", b"x"), part(b"edited", b"")), boundary)
    return b'multipart/form-data; boundary="%b"' % boundary, whole.body(), [*clean, b""]

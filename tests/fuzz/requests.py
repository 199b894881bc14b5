"""Requests as these tests handle them: a content type and a body, from a file of the corpus or a strategy."""

import json
from dataclasses import dataclass
from pathlib import Path

from hypothesis import strategies as st

from fuzz import corpus
from fuzz.documents import DOCUMENTS, documents, encoded, spelled
from fuzz.forms import FORMS, forms
from fuzz.mutations import changed_bytes


@dataclass(frozen=True)
class Posted:
    """What somebody posts. ``content_type`` is what a header can hold: Latin-1."""

    content_type: bytes
    body: bytes

    @classmethod
    def read(cls, path: Path) -> "Posted":
        """A file of the corpus: the content type is its first line."""
        content_type, _, body = path.read_bytes().partition(b"\r\n\r\n")
        return cls(content_type, body)


WHOLE = [
    *(Posted(b"application/json", spelled(tree).encode()) for tree in DOCUMENTS),
    *(Posted(b"multipart/form-data; boundary=" + form.boundary, form.body()) for form in FORMS),
]
KEPT = [Posted.read(path) for path in corpus.REQUESTS if path.stat().st_size < 20_000]


@st.composite
def _bytes_changed(draw) -> Posted:
    """A whole or kept request with a few bytes changed, its content type too."""
    posted = draw(st.sampled_from([*WHOLE, *KEPT]))
    content_type, body = posted.content_type, posted.body
    for _ in range(draw(st.integers(1, 3))):
        body = changed_bytes(draw, body)
    if draw(st.sampled_from([True, *[False] * 9])):
        content_type = _legal(changed_bytes(draw, content_type))
    return Posted(content_type, body)


def _legal(header: bytes) -> bytes:
    """Without what ends a header or makes it none."""
    return bytes(byte for byte in header if byte >= 0x20 and byte != 0x7F).strip()


posts = st.one_of(
    st.builds(
        Posted, st.sampled_from([b"application/json"] * 9 + [b"APPLICATION/JSON; charset=utf-16"]), encoded(documents())
    ),
    forms().map(lambda form: Posted(_legal(form[0]), form[1])),
    _bytes_changed(),
)


def edits_of(body: bytes) -> list[int] | None:
    """Edits per group of a JSON request as Python's parser reads it; None if it is no such request."""
    try:
        document = json.loads(body.decode("utf-8-sig"))  # a byte order mark is let pass
        return (
            [len(group["edits"]) for group in document["groups"]]
            if "groups" in document
            else [len([document["edited"]])]
        )
    except (ValueError, TypeError, KeyError, RecursionError):
        return None

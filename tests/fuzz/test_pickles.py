"""Pickles at the decoder: what CPython writes comes back, and anything else is a value of ours or one typed error."""

import math
import pickle
import pickletools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzz import corpus
from fuzz.effort import effort
from fuzz.mutations import changed_bytes
from fuzz.verdicts import peak_growth, short_message
from jrm_service.wires.pickle_allowlist import PickleError, PILState
from jrm_service.wires.pickles import loads
from support.cases import each
from support.counting import calls

SEEDS = [path.read_bytes() for path in corpus.PICKLES]
_ROOM = 24 * 2**20

texts = st.text(st.characters(exclude_categories=["Cs"]))
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**127), 2**127 - 1), st.floats(allow_nan=False), texts, st.binary()
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner), st.lists(inner).map(tuple), st.dictionaries(st.one_of(texts, st.integers(0, 99)), inner)
    ),
    max_leaves=30,
)


@effort(600)
@given(value=values, protocol=st.integers(0, 5), in_python=st.booleans())
def test_what_cpython_writes_comes_back(value, protocol, in_python):
    """Its two picklers write the same opcodes in other frames and with other memos."""
    dumps = pickle._dumps if in_python else pickle.dumps
    assert loads(dumps(value, protocol)) == value


@effort(200)
@given(value=values, protocol=st.integers(2, 5))
def test_so_does_what_was_optimized_and_what_is_shared(value, protocol):
    assert loads(pickletools.optimize(pickle.dumps(value, protocol))) == value
    assert loads(pickle.dumps([value, {"again": value}], protocol)) == [value, {"again": value}]


@st.composite
def damaged_pickles(draw):
    """A pickle with a few changed bytes, or opcodes and short arguments at random."""
    if draw(st.booleans()):
        opcodes = st.sampled_from([opcode.code.encode("latin-1") for opcode in pickletools.opcodes])
        pieces = draw(st.lists(st.one_of(opcodes, opcodes, st.binary(min_size=1, max_size=3)), max_size=40))
        return b"".join(pieces) + b"."
    file = draw(st.sampled_from(SEEDS))
    for _ in range(draw(st.integers(1, 4))):
        file = changed_bytes(draw, file)
    return file


def loaded(data: bytes) -> object:
    """The value, or the error's message. Fails for any other exception, and for memory beyond what was sent."""

    def attempt() -> object:
        try:
            return loads(data)
        except PickleError as error:
            short_message(error, 250)
            return error

    value, growth = peak_growth(attempt)
    assert growth < 40 * len(data) + _ROOM
    return value


def is_plain(value: object) -> bool:
    if isinstance(value, dict):
        return all(is_plain(part) for pair in value.items() for part in pair)
    if isinstance(value, list | tuple):
        return all(is_plain(part) for part in value)
    return value is None or type(value) in (bool, int, float, str, bytes)


@effort(1500)
@given(damaged_pickles())
def test_damage_is_a_plain_value_or_the_typed_error(data):
    value = loaded(data)
    if isinstance(value, PickleError | PILState) or not is_plain(value):
        return  # of images the state alone is read, which CPython would build
    theirs = pickle.loads(data)  # safe: it was accepted
    assert theirs == value or (isinstance(value, float) and math.isnan(value)) or repr(theirs) == repr(value)


@pytest.mark.parametrize("path", corpus.PICKLES, ids=corpus.name)
def test_the_corpus_gets_its_verdict(path):
    began = time.perf_counter()
    value = loaded(path.read_bytes())
    assert isinstance(value, PickleError) == (path.parent.name == "refused"), value
    assert time.perf_counter() - began < 30


LATIN = (
    b"c_codecs\nencode\nq\x00X" + (60_000).to_bytes(4, "little") + b"x" * 60_000 + b"q\x01X\x06\x00\x00\x00latin1q\x02"
)
LARGE = {
    "open lists": b"]" * 200_000 + b".",
    "open marks": b"(" * 200_000,
    "opcodes without end": (b"N" + b"\x85" * 10) * 60_000,
    "the same bytes made again and again": b"\x80\x02(" + LATIN + b"h\x00h\x01h\x02\x86R" * 4000 + b"t.",
    "a long of 100,000 digits": b"L" + b"9" * 100_000 + b"L\n.",
    "an int of 100,000 digits": b"I" + b"9" * 100_000 + b"\n.",
    "an integer of 64 KiB": b"\x8b" + (65536).to_bytes(4, "little") + b"\x01" * 65536 + b".",
    "a line without end": b"V" + b"x" * 1_000_000,
    "a name without end": b"c" + b"x" * 1_000_000,
}


@each("name", LARGE)
def test_a_large_body_takes_no_more_than_its_size(name):
    began = time.perf_counter()
    assert isinstance(loaded(LARGE[name]), PickleError)
    assert time.perf_counter() - began < 30


@pytest.mark.parametrize("named", [1, 10, 1000])
def test_a_container_is_opened_once_however_often_it_is_named(named):
    table = {f"{n}": None for n in range(100)}
    data = pickle.dumps([table] * named + [[table]] * named)
    counted = calls(lambda: loads(data))
    assert counted["_children"] == 3
    assert counted["dict.values"] == 1


@pytest.mark.parametrize("index", [2**20, 2**31 - 1, 2**32 - 1])
def test_nine_bytes_with_a_memo_index_take_no_memory(index):
    """CPython's own unpickler makes room for as many entries as the index says."""
    data = b"\x80\x04Nr" + index.to_bytes(4, "little") + b"."
    error, growth = peak_growth(lambda: loaded(data))
    assert isinstance(error, PickleError)
    assert growth < 100_000

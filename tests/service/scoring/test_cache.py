"""The score cache: what is found, what is not, and what makes a key."""

from __future__ import annotations

import asyncio
import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from jrm_service.metrics import Metrics
from jrm_service.scoring import score_format
from jrm_service.scoring.cache import ScoreCache, scope_of
from jrm_service.scoring.fakes import fake_score
from jrm_service.scoring.types import Candidate, Image, Score, ServedModel
from service.scoring.support import Counts, candidate

PIXELS = np.zeros((1, 1, 3), dtype=np.uint8)


class DictStore:
    """A ScoreStore that neither forgets nor fails."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}

    async def get(self, key: bytes) -> bytes | None:
        return self.values.get(key)

    def put(self, key: bytes, value: bytes) -> None:
        self.values[key] = value


def cache(*scope: str, max_entries: int = 100, **options) -> tuple[ScoreCache, Counts]:
    metrics = Metrics(CollectorRegistry())
    return ScoreCache(scope, max_entries=max_entries, metrics=metrics, **options), Counts(metrics)


def of(source: bytes, edited: bytes, instruction: str) -> Candidate:
    return Candidate((Image(source, PIXELS, 1),), Image(edited, PIXELS, 1), instruction, ())


def test_a_score_that_is_kept_is_the_one_that_was_computed() -> None:
    made, counts = cache()
    one, twin = of(b"s", b"e", "x"), of(b"s", b"e", "x")
    assert made.recall(one) is None
    made.remember(one, fake_score(one))
    assert made.recall(twin) == fake_score(one)
    assert counts("jrm_cache_hits_total", tier="memory") == counts("jrm_cache_misses_total", tier="memory") == 1
    assert counts("jrm_cache_entries") == 1


def test_the_sources_and_their_order_are_part_of_the_key() -> None:
    made, _ = cache()

    def key(*sources: bytes, edited: bytes = b"e") -> bytes:
        images = tuple(Image(source, PIXELS, 1) for source in sources)
        return made.key(Candidate(images, Image(edited, PIXELS, 1), "x", ()))

    keys = [key(), key(b"s"), key(b"t"), key(b"s", b"t"), key(b"t", b"s"), key(b"s", b"s"), key(b"s", edited=b"s")]
    assert len(set(keys)) == len(keys)
    assert key(b"s") == made.key(of(b"s", b"e", "x"))


def test_the_least_recently_used_goes_first() -> None:
    made, counts = cache(max_entries=2)
    first, second, third = candidate(), candidate(), candidate()
    made.remember(first, fake_score(first))
    made.remember(second, fake_score(second))
    made.recall(first)
    made.remember(third, fake_score(third))
    assert [made.recall(one) is not None for one in (first, second, third)] == [True, False, True]
    assert counts("jrm_cache_entries") == 2


def test_without_entries_nothing_is_kept_or_counted() -> None:
    made, counts = cache(max_entries=0)
    one = candidate()
    made.remember(one, fake_score(one))
    assert made.recall(one) is None
    assert asyncio.run(made.fetch(one)) is None
    assert counts("jrm_cache_misses_total", tier="memory") == counts("jrm_cache_entries") == 0


def test_what_is_not_finite_is_not_kept() -> None:
    store = DictStore()
    made, _ = cache(store=store)
    one = candidate()
    made.remember(one, Score(math.nan, None, {}))
    assert made.recall(one) is None
    assert not store.values


def test_another_replica_finds_it_bit_for_bit_and_keeps_it() -> None:
    store = DictStore()
    (one, _), (other, counts) = cache("f", store=store), cache("f", store=store)
    wanted = candidate()
    one.remember(wanted, fake_score(wanted))
    assert other.recall(wanted) is None
    assert repr(asyncio.run(other.fetch(wanted))) == repr(fake_score(wanted))
    assert other.recall(wanted) == fake_score(wanted)
    assert counts("jrm_cache_hits_total", tier="redis") == 1


def test_nothing_is_found_across_scopes() -> None:
    store = DictStore()
    wanted = candidate()
    for scope in (["f", "float32"], ["f", "bfloat16"], ["ff", "loat32"], ["f"], []):
        made, _ = cache(*scope, store=store)
        assert asyncio.run(made.fetch(wanted)) is None
        made.remember(wanted, fake_score(wanted))


def test_a_stored_value_of_other_dimensions_is_a_miss() -> None:
    store = DictStore()
    made, counts = cache(store=store, dimensions=["instruction_following"])
    wanted = candidate()
    store.put(made.key(wanted), score_format.encode(made.key(wanted), fake_score(wanted)))
    assert asyncio.run(made.fetch(wanted)) is None
    assert counts("jrm_cache_errors_total", tier="redis", reason="invalid") == 1
    assert counts("jrm_cache_misses_total", tier="redis") == 1


def test_what_is_computed_while_the_store_is_asked_is_found() -> None:
    class Meanwhile(DictStore):
        async def get(self, key: bytes) -> bytes | None:
            made.remember(wanted, fake_score(wanted))
            return None

    made, _ = cache(store=Meanwhile())
    wanted = candidate()
    assert asyncio.run(made.fetch(wanted)) == fake_score(wanted)


PART = st.binary(max_size=4)
TEXT = st.text(st.characters(), max_size=4)  # lone surrogates among them


@given(first=st.tuples(PART, PART, TEXT), second=st.tuples(PART, PART, TEXT))
def test_no_two_candidates_share_a_key(first: tuple[bytes, bytes, str], second: tuple[bytes, bytes, str]) -> None:
    made, _ = cache("scope")
    assert (made.key(of(*first)) == made.key(of(*second))) == (first == second)


def test_parts_that_meet_elsewhere_are_other_parts() -> None:
    made, _ = cache("scope")
    keys = {
        made.key(of(*parts))
        for parts in [(b"ab", b"c", "d"), (b"a", b"bc", "d"), (b"ab", b"", "cd"), (b"", b"abc", "d")]
    }
    assert len(keys) == 4


def test_a_scope_has_everything_that_decides_a_score() -> None:
    base = {"precision": "float32", "engine": "trie", "device": "cuda:0"}
    scope = scope_of(ServedModel("name", "fingerprint", base))
    assert scope_of(ServedModel("other name", "fingerprint", base | {"device": "cuda:1,cuda:2"})) == scope
    others = [
        ServedModel("name", "other", base),
        *[
            ServedModel("name", "fingerprint", base | change)
            for change in ({"precision": "fp8"}, {"engine": "plain"}, {"device": "cpu"}, {"backend": "fake"})
        ],
    ]
    assert scope not in map(scope_of, others)

"""The trie scorer against the plain scorer: the same scores, whatever shares the batch."""

import itertools
import random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jrm_service.model.checkpoint import open_checkpoint
from jrm_service.model.engine import TrieScorer
from jrm_service.model.features import FeatureCache, Features
from jrm_service.model.scorer import PlainScorer
from jrm_service.scoring.backend import OutOfMemory
from jrm_service.scoring.preparing import CheckpointPreparer
from support import checkpoints
from support.pictures import photo
from support.reference import Reference

PLAIN = 1e-4
COMPANY = 1e-5
LAYOUTS = {
    "one pass": checkpoints.one_pass,
    "two passes": checkpoints.two_passes,
    "prompt first": checkpoints.prompt_first,
    "two passes, mean only": lambda: checkpoints.mean_only(checkpoints.two_passes()),
    "prompt first, min": lambda: checkpoints.lowest(checkpoints.prompt_first()),
}
SIZES = [(96, 80), (40, 40), (300, 40), (40, 200), (1, 1), (128, 128), (210, 190)]
PICTURES = [photo(*size, seed=n) for n, size in enumerate(SIZES)]
INSTRUCTIONS = ["make it red", "x", "把它变成蓝色", "<|Reward|> <|image_pad|>", "a long one " * 12]


@pytest.fixture(scope="module", params=LAYOUTS)
def scorers(request, tmp_path_factory):
    """(preparer, plain, trie) over the same weights, and every prepared picture."""
    checkpoint = open_checkpoint(checkpoints.write(tmp_path_factory.mktemp("engine"), LAYOUTS[request.param]()))
    preparer = CheckpointPreparer(checkpoint)
    plain, trie = (kind(checkpoint, "cpu", torch.float32) for kind in (PlainScorer, TrieScorer))
    return preparer, plain, trie, [preparer.image(picture) for picture in PICTURES]


def score(scorer, candidates):
    return scorer.score(scorer.collate(candidates)).outcomes


def assert_close(ours, theirs, tolerance):
    for one, other in zip(ours, theirs, strict=True):
        assert one.reward == pytest.approx(other.reward, abs=tolerance)
        assert one.reward_std == (None if other.reward_std is None else pytest.approx(other.reward_std, abs=tolerance))
        for name, dimension in one.dimensions.items():
            assert dimension.mean == pytest.approx(other.dimensions[name].mean, abs=tolerance)
            std = other.dimensions[name].std
            assert dimension.std == (None if std is None else pytest.approx(std, abs=tolerance))


picks = st.lists(
    st.tuples(
        st.integers(0, len(PICTURES) - 1), st.integers(0, len(PICTURES) - 1), st.integers(0, len(INSTRUCTIONS) - 1)
    ),
    min_size=1,
    max_size=12,
)


@given(picks=picks)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_batch_scores_as_the_plain_scorer_does(scorers, picks):
    preparer, plain, trie, images = scorers
    candidates = [preparer.candidate([images[s]], images[e], INSTRUCTIONS[i]) for s, e, i in picks]
    assert_close(score(trie, candidates), score(plain, candidates), PLAIN)


@pytest.fixture(scope="module", params=["no source", "three sources"])
def sourced(request, tmp_path_factory):
    """The same over a checkpoint that takes no source, or up to three; and the number of sources of each candidate."""
    made = {"no source": checkpoints.no_source, "three sources": checkpoints.several_sources}[request.param]()
    checkpoint = open_checkpoint(checkpoints.write(tmp_path_factory.mktemp("sourced"), made))
    preparer = CheckpointPreparer(checkpoint)
    plain, trie = (kind(checkpoint, "cpu", torch.float32) for kind in (PlainScorer, TrieScorer))
    sources = {0: [[]], 3: [[0], [0, 1], [1, 0], [0, 0], [2, 0, 1], [0, 1, 0], [1]]}[preparer.max_sources]
    return checkpoint, preparer, plain, trie, [preparer.image(picture) for picture in PICTURES], sources


def test_any_number_of_sources_scores_as_the_plain_scorer_and_the_reference_do(sourced):
    checkpoint, preparer, plain, trie, images, sources = sourced
    picks = [(given, e, i) for i, given in enumerate(sources * 3) for e in (3 + i % 3, 6)]
    candidates = [
        preparer.candidate([images[s] for s in given], images[e], INSTRUCTIONS[i % 5]) for given, e, i in picks
    ]
    together = score(trie, candidates)
    assert_close(together, score(plain, candidates), PLAIN)
    alone = [score(trie, [candidate])[0] for candidate in candidates]
    assert_close(together, alone, COMPANY)
    reference = Reference(checkpoint.path)
    for (places, e, i), ours in zip(picks[:: len(picks) // 6], together[:: len(picks) // 6], strict=True):
        expected = reference.score([PICTURES[s] for s in places], PICTURES[e], INSTRUCTIONS[i % 5])
        assert ours.reward == pytest.approx(expected["reward"], abs=PLAIN), places
    assert len({round(one.reward, 6) for one in together}) == len(picks)  # order and number matter


def test_sources_are_shared_and_kept(sourced):
    _, preparer, _, trie, images, sources = sourced
    trie.features.clear()
    given = [images[s] for s in sources[-2 if len(sources) > 1 else 0]]
    group = [preparer.candidate(given, images[n % 3 + 3], f"make it {n}") for n in range(6)]
    scored = trie.score(trie.collate(group))
    distinct = {image.key for candidate in group for image in candidate.images}
    assert scored.images_encoded == len(distinct)
    assert scored.tokens_computed < 0.8 * sum(candidate.tokens for candidate in group) or not given
    assert trie.score(trie.collate(group)).images_encoded == 3  # the edits: all the sources were kept


def test_several_rows_of_one_batch_score_as_the_plain_scorer_does(scorers):
    """Rows forced by ``row_tokens``, through the public ``collate``; candidates of three groups stand mixed in it."""
    preparer, plain, trie, images = scorers
    candidates = [preparer.candidate([images[n % 3]], images[n % 7], INSTRUCTIONS[n % 5]) for n in range(11)]
    expected = score(plain, candidates)
    (whole,) = TrieScorer(trie._checkpoint, "cpu", torch.float32, row_tokens=10**6).collate(candidates)
    split = TrieScorer(trie._checkpoint, "cpu", torch.float32, row_tokens=1)
    rows = split.collate(candidates)
    assert len(rows) > 1
    order = [n for row in rows for n in row.candidates]
    assert order != sorted(order)  # so that a mistake in putting scores back would show
    scored = split.score(rows)
    assert_close(scored.outcomes, expected, PLAIN)
    assert scored.tokens_computed > whole.packed.ids.numel()


def group_of_twelve(preparer, images):
    return [preparer.candidate([images[0]], images[n % len(images)], f"make it {n}") for n in range(12)]


def test_company_and_order_do_not_matter(scorers):
    preparer, _, trie, images = scorers
    group = group_of_twelve(preparer, images)
    together = score(trie, group)
    assert_close([score(trie, [one])[0] for one in group], together, COMPANY)
    order = random.Random(0).sample(range(12), 12)
    shuffled = score(trie, [group[n] for n in order])
    assert_close([shuffled[order.index(n)] for n in range(12)], together, COMPANY)


def test_another_worker_and_a_cold_cache_give_the_same(scorers):
    preparer, _, trie, images = scorers
    group = group_of_twelve(preparer, images)
    warm = score(trie, group)
    trie.features = FeatureCache(0)
    assert_close(score(trie, group), warm, COMPANY)
    trie.features = FeatureCache(2**30)


def test_nothing_leaks_between_candidates(scorers):
    """Changing one edit, or its instruction, changes no other score."""
    preparer, _, trie, images = scorers
    group = group_of_twelve(preparer, images)
    before = score(trie, group)
    for changed in (
        preparer.candidate([images[0]], images[6], "something else entirely"),
        preparer.candidate([images[5]], images[1], "make it 3"),
    ):
        after = score(trie, [*group[:3], changed, *group[4:]])
        assert after[3].reward != pytest.approx(before[3].reward, abs=1e-6)
        assert_close(after[:3] + after[4:], before[:3] + before[4:], COMPANY)


def test_a_nan_stays_with_its_candidate(scorers):
    preparer, _, trie, images = scorers
    spoilt = trie.features
    trie.features = FeatureCache(2**30)
    broken = Features(
        torch.full((images[3].tokens, 64), float("nan")), tuple(torch.zeros(images[3].tokens, 64) for _ in range(2))
    )
    trie.features.put(images[3].key, broken)
    outcomes = score(trie, [preparer.candidate([images[n]], images[0], "x") for n in (1, 3, 2)])
    trie.features = spoilt
    assert [outcome.finite for outcome in outcomes] == [True, False, True]


def test_work_is_shared(scorers):
    preparer, plain, trie, images = scorers
    group = [preparer.candidate([images[0]], images[n % 6 + 1], "make it red") for n in range(12)]
    trie.features = FeatureCache(2**30)
    scored = trie.score(trie.collate(group))
    one_by_one = plain.score(plain.collate(group))
    assert scored.tokens_computed < one_by_one.tokens_computed
    assert one_by_one.images_encoded == 2 * sum(len(candidate.sequences) for candidate in group)
    assert (scored.images_encoded, scored.images_reused) == (7, 0)
    again = trie.score(trie.collate(group))
    assert (again.images_encoded, again.images_reused) == (6, 1)  # the source came from the cache


@pytest.mark.parametrize("size", [1, 5, 12])
def test_rows_of_any_length_give_the_same(scorers, size):
    preparer, _, trie, images = scorers
    group = [preparer.candidate([images[n % 3]], images[n % 7], f"make it {n}") for n in range(12)]
    rows = [trie._row(list(range(n, min(n + size, 12))), group) for n in range(0, 12, size)]
    assert_close(trie.score(rows).outcomes, score(trie, group), COMPANY)


def test_an_image_evicted_between_collation_and_scoring_is_encoded_again(scorers):
    preparer, _, trie, images = scorers
    group = group_of_twelve(preparer, images)
    expected = score(trie, group)
    row = trie.collate(group)  # relies on the cached source
    trie.features = FeatureCache(2**30)
    assert_close(trie.score(row).outcomes, expected, COMPANY)


class Greedy(FeatureCache):
    """Whoever asks it finds no memory left on the device, until it has been cleared."""

    cleared = 0

    def get(self, key):
        if not self.cleared:
            raise MemoryError
        return super().get(key)

    def clear(self):
        self.cleared += 1
        return super().clear()


def test_kept_features_give_way_to_a_batch_that_needs_their_memory(scorers):
    preparer, _, trie, images = scorers
    group = group_of_twelve(preparer, images)
    expected = score(trie, group)
    trie.features = Greedy(2**30)
    trie.features.put(images[3].key, Features(torch.zeros(5), ()))
    assert_close(score(trie, group), expected, COMPANY)
    assert trie.features.cleared == 1
    trie.features = FeatureCache(2**30)


def test_a_batch_that_does_not_fit_even_so_is_out_of_memory(scorers):
    preparer, _, trie, images = scorers
    trie.features = Greedy(2**30)  # empty: there is nothing to give up
    with pytest.raises(OutOfMemory):
        score(trie, group_of_twelve(preparer, images))
    assert trie.features.cleared == 1
    trie.features = FeatureCache(2**30)


# --- the cache -------------------------------------------------------------------------------------------------------


def features(size: int) -> Features:
    return Features(torch.zeros(size, dtype=torch.uint8), ())


def test_the_least_recently_used_goes_first():
    cache = FeatureCache(100)
    for key in (b"a", b"b"):
        cache.put(key, features(50))
    assert cache.get(b"a") is not None
    cache.put(b"c", features(50))
    assert [key in cache for key in (b"a", b"b", b"c")] == [True, False, True]
    assert cache.nbytes == 100


def test_bytes_are_bounded_and_counted():
    cache = FeatureCache(100)
    cache.put(b"large", features(101))
    assert b"large" not in cache
    for key, size in zip(itertools.cycle([b"a", b"b", b"a"]), [10, 60, 40, 30, 5, 90], strict=False):
        cache.put(key, features(size))
        held = [cache.get(name) for name in (b"a", b"b")]
        assert cache.nbytes == sum(one.nbytes for one in held if one is not None) <= 100


def test_clearing_says_whether_there_was_anything():
    cache = FeatureCache(100)
    assert not cache.clear()
    cache.put(b"a", features(50))
    assert cache.room == 50
    assert cache.clear()
    assert (cache.nbytes, cache.room) == (0, 100)
    assert b"a" not in cache

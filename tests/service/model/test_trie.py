"""The trie: shared beginnings, packed positions, who sees what."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import Qwen3VLConfig, Qwen3VLModel

from jrm_service.model.tiny import MANIFEST, write_tiny_checkpoint
from jrm_service.model.trie import attention_groups, build_trie, positions, shared_tokens, split_rows
from jrm_service.scoring.types import Candidate, Image, Text, TokenSequence

FACTOR = 32
IMAGE_ID = 7


def image(number: int, height: int, width: int) -> Image:
    pixels = np.full((height * FACTOR, width * FACTOR, 3), number, np.uint8)
    return Image(bytes([number, height, width]), pixels, height * width)


texts = st.lists(st.integers(10, 14), min_size=1, max_size=4).map(lambda ids: Text(tuple(ids)))
images = st.builds(image, st.integers(0, 2), st.integers(1, 3), st.integers(1, 3))
sequences = st.lists(st.tuples(texts, images), max_size=3).flatmap(
    lambda pairs: texts.map(lambda last: (*(segment for pair in pairs for segment in pair), last))
)
batches = st.lists(sequences, min_size=1, max_size=8)


def identity(segment) -> object:
    return segment.ids if isinstance(segment, Text) else segment.key


def ids_of(segments) -> list[int]:
    """What the language model would see, with the image's own number in place of its pixels."""
    return [
        token for s in segments for token in (s.ids if isinstance(s, Text) else [100 + s.key[0]] * s.tokens)
    ]  # fmt: skip


@given(batches)
def test_every_distinct_path_is_packed_once(batch):
    paths = {
        tuple(map(identity, segments[: n + 1])): segments[n].tokens for segments in batch for n in range(len(segments))
    }
    assert build_trie(batch).tokens == sum(paths.values())


@given(batches)
def test_the_path_of_a_read_is_its_sequence(batch):
    trie = build_trie(batch)
    found = {read: node for node in trie.nodes for read in node.ending}
    assert sorted(found) == list(range(len(batch)))
    for number, segments in enumerate(batch):
        node = found[number]
        along = [identity(segment) for above in node.path for segment in above.segments]
        assert along == [identity(segment) for segment in segments]
        assert trie.reads[number] == node.start + node.tokens - 1


@given(batches)
def test_nodes_tile_the_row_and_parents_come_first(batch):
    trie = build_trie(batch)
    end = 0
    for node in trie.nodes:
        assert node.start == end
        assert all(above.start <= node.start for above in node.path)
        end += node.tokens
    assert end == trie.tokens


@given(batches)
def test_a_query_sees_its_own_path_up_to_itself(batch):
    """Reading the packed row through the attention groups gives back every sequence's causal context."""
    trie = build_trie(batch)
    packed = np.array(ids_of(trie.segments))
    seen: dict[int, list[int]] = {}
    for group in attention_groups(trie):
        width = group.queries.shape[1]
        for queries, keys in zip(group.queries, group.keys, strict=True):
            assert keys[-width:].tolist() == queries.tolist()
            for n, query in enumerate(queries):
                assert query not in seen
                seen[int(query)] = packed[keys[: len(keys) - width + n + 1]].tolist()
    assert sorted(seen) == list(range(trie.tokens))
    for read, segments in zip(trie.reads, batch, strict=True):
        assert seen[read] == ids_of(segments)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """transformers' own model, for its ``get_rope_index``."""
    path = write_tiny_checkpoint(tmp_path_factory.mktemp("rope"), MANIFEST)
    with torch.device("meta"):
        return Qwen3VLModel(Qwen3VLConfig.from_pretrained(path))


@given(batch=batches)
def test_positions_equal_those_of_transformers(model, batch):
    trie = build_trie(batch)
    ours = positions(trie, FACTOR)
    assert ours.dtype == np.int64
    nodes = {read: node for node in trie.nodes for read in node.ending}
    for number, segments in enumerate(batch):
        types = [int(isinstance(s, Image)) for s in segments for _ in range(s.tokens)]
        grids = [[1, s.pixels.shape[0] // 16, s.pixels.shape[1] // 16] for s in segments if isinstance(s, Image)]
        expected, _ = model.get_rope_index(
            torch.zeros(1, len(types), dtype=torch.long),
            mm_token_type_ids=torch.tensor([types]),
            image_grid_thw=torch.tensor(grids) if grids else None,
        )
        slots = np.concatenate([above.slots for above in nodes[number].path])
        assert ours[:, slots].tolist() == expected[:, 0].tolist()


@given(batches)
def test_cost_counts_packed_tokens_and_each_image_once_more(batch):
    source = image(0, 2, 2)
    candidates = [Candidate((source,), image(1, 1, 3), "x", (TokenSequence(segments, ()),)) for segments in batch]
    assert shared_tokens(candidates) == build_trie(batch).tokens + source.tokens + 3


@given(st.lists(st.integers(0, 3), min_size=1, max_size=20), st.integers(1, 60))
def test_rows_keep_sources_together_and_lose_nobody(sources, budget):
    candidates = [
        Candidate((image(s, 1, 1),), image(n, 1, 2), "x", (TokenSequence((image(s, 1, 1), Text((n,))), ()),))
        for n, s in enumerate(sources)
    ]
    rows = split_rows(candidates, budget)
    flat = [index for row in rows for index in row]
    assert sorted(flat) == list(range(len(candidates)))
    runs = [sources[index] for index in flat]
    assert len([n for n in range(1, len(runs)) if runs[n] != runs[n - 1]]) == len(set(runs)) - 1
    for row in rows:
        *before, last = (candidates[index] for index in row)
        shared = shared_tokens(before) + shared_tokens([last]) - shared_tokens([*before, last])
        assert shared_tokens(before) < max(budget, 16 * shared)


def edit_of(prompt: tuple[int, ...], number: int) -> Candidate:
    """With one source for all, and two tokens of its own beside it: those of its edit and of its last text."""
    source, edit = image(0, 1, 1), image(number, 1, 1)
    return Candidate((source,), edit, "x", (TokenSequence((Text(prompt), Text((number,))), ()),))


def test_a_row_ends_with_the_candidate_that_fills_the_budget():
    group = [edit_of((number,), number) for number in range(1, 5)]  # 4 tokens the first of a row, 3 each of the others
    assert split_rows(group, 10) == [[0, 1, 2], [3]]
    assert split_rows(group, 11) == [[0, 1, 2, 3]]


def test_a_row_holds_what_all_of_its_candidates_have_brought():
    long, other = tuple(range(10, 20)), tuple(range(30, 40))
    group = [edit_of(prompt, number) for number, prompt in enumerate((long, other, long, (1,)), start=1)]
    assert split_rows(group, 30) == [[0, 1, 2, 3]]  # 13 + 12 + 2 when the last one comes


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 30), st.integers(1, 400))
def test_of_the_work_of_rows_at_most_a_sixteenth_is_done_again(first, last, edits, budget):
    """Whatever comes first: a long prompt that all edits share, or nothing but the source."""
    source, prompt = image(0, 2, 2), Text(tuple(range(first)))
    group = [
        Candidate((source,), edit, "x", (TokenSequence((prompt, source, edit, Text((n,) * last)), ()),))
        for n in range(edits)
        for edit in [Image(bytes([n, 9]), np.zeros((FACTOR, FACTOR, 3), np.uint8), 1)]
    ]
    rows = split_rows(group, budget)
    work = sum(shared_tokens([group[n] for n in row]) for row in rows)
    kept = (len(rows) - 1) * source.tokens  # in the cost of each row, but the features of the source are there already
    assert work - kept - shared_tokens(group) <= work / 16


@given(batches, sequences)
def test_cost_grows_and_never_exceeds_the_candidates_alone(batch, more):
    """What the planner asks of a cost."""
    source = image(0, 2, 2)
    candidates = [Candidate((source,), source, "x", (TokenSequence(segments, ()),)) for segments in [*batch, more]]
    assert shared_tokens(candidates[:-1]) <= shared_tokens(candidates)
    assert shared_tokens(candidates) <= sum(shared_tokens([one]) for one in candidates)


@given(batch=batches)
def test_sequential_positions_count_images_like_text(batch):
    trie = build_trie(batch)
    counted = positions(trie, FACTOR, "sequential")
    assert (counted == counted[0]).all()
    for node in trie.nodes:
        assert counted[0, node.slots].tolist() == list(range(node.context - node.tokens, node.context))

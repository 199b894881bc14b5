"""The counted work of the documentation's table: pinned, so that neither the engine nor the page can drift."""

import pytest
from benchmarks.shapes import SHAPES, group

from benchmarks import work
from docs import pages

SHAPE = SHAPES["8b"]


@pytest.fixture(scope="module")
def costs():
    return work.by_layout(SHAPE)


@pytest.fixture
def paper(costs):
    return costs["paper"]


@pytest.fixture
def prompt_first(costs):
    return costs["prompt first"]


def test_sequences_have_the_lengths_of_the_paper():
    candidate = group(SHAPE, "paper", 1)[0]
    lengths = [[segment.tokens for segment in sequence.segments] for sequence in candidate.sequences]
    assert lengths == [[5, 196, 2, 196, 400]] * 2


def test_one_by_one_nothing_is_shared(paper):
    alone, _ = paper
    assert (alone.tokens, alone.encodings) == (12 * 2 * (201 + 198 + 400), 48)


def test_a_trie_holds_what_differs_once_for_each_candidate(paper):
    """The two tokens after the source are the same for every edit, so they are shared with it."""
    _, shared = paper
    assert (shared.tokens, shared.encodings) == (203 + 12 * (196 + 2 * 400), 13)


def test_one_sequence_costs_what_its_weights_say(paper):
    """Two FLOPs for each weight of a matrix and token, and two products of queries and keys a layer."""
    alone, _ = paper
    matrices = 36 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 12288)
    attention = 36 * 2 * 2 * 799 * 4096
    assert alone.language_flops == 24 * 799 * (2 * matrices + attention)


def test_goals_of_the_papers_layout(paper):
    alone, shared = paper
    assert shared.tokens / alone.tokens <= 0.65
    assert shared.flops / alone.flops <= 0.64


def test_goals_of_a_prompt_that_comes_first(prompt_first):
    alone, shared = prompt_first
    assert shared.tokens / alone.tokens <= 0.35
    assert shared.flops / alone.flops <= 0.35
    assert (alone.encodings, shared.encodings) == (48, 13)


def test_the_documentation_shows_the_table_that_is_printed(costs):
    page = pages.DOCS / "performance.md"
    assert work.report(costs) in page.read_text(encoding="utf-8")

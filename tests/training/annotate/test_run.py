"""Whole runs against a scripted endpoint: planted faults are caught, good answers accepted, nothing is asked twice."""

import asyncio
import json

import pytest

from jrm_client.retry import Backoff
from jrm_training.annotate.endpoint import Endpoint, EndpointError
from jrm_training.annotate.jobs import KINDS, Scale, read_jobs
from jrm_training.annotate.journal import Journal, JournalError
from jrm_training.annotate.run import MAX_REFUSALS, Options, run, unsettled
from support.preferences import both, row, write
from support.scripted_endpoint import Reply, ScriptedEndpoint, critique, good, judgement


def annotate(data, endpoint, retry_rejected=False, **options):
    """Run what is left, and return the entries by instruction, dimension and edit."""
    jobs = read_jobs(data, KINDS, Scale())

    async def write_all(journal):
        async with Endpoint(endpoint.url, "m", backoff=Backoff(0, 0)) as chats:
            left = unsettled(jobs, journal, retry_rejected=retry_rejected)
            await run(data.parent, left, chats, journal, Options(**options))

    with Journal(data.with_name("journal"), {}) as journal:
        asyncio.run(write_all(journal))
        instructions = {job.line: job.instruction for job in jobs}
        entries = [journal.entry(settled) for _, settled in journal.items()]
        return {(instructions[entry.line], entry.dimension, entry.edit): entry for entry in entries}


# --- planted faults ---------------------------------------------------------------------------------------------------


def contrary(asked):
    """A critique that argues for the other end of the scale."""
    return critique(1 if judgement(asked) >= 3 else 4, regions="edit_region" in asked.texts[0])


def without(text, *keys):
    return json.dumps({key: value for key, value in json.loads(text).items() if key not in keys})


def changed(**changes):
    return lambda asked: critique(judgement(asked), regions=True, **changes)


SQUARE = {"id": 0, "label": "square", "bbox_2d": [100, 200, 300, 500]}
PLANTED = {
    "no JSON": (lambda _: "Of course! The edit is fine.", "not JSON"),
    "no regions": (lambda a: without(critique(judgement(a), regions=True), "edit_region"), "edit_region: Field"),
    "no words": (lambda a: without(critique(judgement(a), regions=True), "reasoning"), "reasoning: Field required"),
    "a region outside": (changed(edit_region=[SQUARE | {"bbox_2d": [0, 0, 500, 1400]}]), "is outside the image"),
    "a region without area": (changed(edit_region=[SQUARE | {"bbox_2d": [300, 200, 100, 500]}]), "has no area"),
    "a tag without region": (changed(edit_region=[]), "there is no region with the id of <|bbox_0|>"),
    "a region without tag": (changed(reasoning="<|global|> fine"), "region 0 is not mentioned"),
    "words for another score": (contrary, "the words argue for a score of"),
    "another score stated": (
        lambda a: critique(judgement(a), regions=True, reasoning=f"<|bbox_0|> {5 - judgement(a)}/4 <|global|> kept"),
        "states a score of",
    ),
}


def planting(fault, tries):
    """An annotator that makes this fault in its first answers about following."""

    def script(asked):
        if asked.reads or "edit_region" not in asked.texts[0] or asked.tries >= tries:
            return good(asked)
        return Reply(fault(asked))

    return script


@pytest.mark.parametrize(("fault", "reason"), PLANTED.values(), ids=PLANTED)
def test_a_fault_is_asked_about_and_put_right(tmp_path, fault, reason):
    data = write(tmp_path, [row(1, both(4, 4), both(1, 1))])
    with ScriptedEndpoint(planting(fault, 1)).serving() as endpoint:
        entries = annotate(data, endpoint)
    assert all(entry.critique for entry in entries.values())
    mended = [entry for entry in entries.values() if entry.dimension == "instruction_following"]
    for entry in mended:
        assert entry.tries == 2
        assert reason in entry.faults[0][0]
    again = next(asked for asked in endpoint.asked if asked.tries)
    assert again.texts[2].startswith("This cannot be used:\n- ")
    assert reason in again.texts[2]


@pytest.mark.parametrize(("fault", "reason"), PLANTED.values(), ids=PLANTED)
def test_a_fault_that_stays_is_given_up_with_its_reason(tmp_path, fault, reason):
    data = write(tmp_path, [row(1, both(4, 4), both(1, 1))])
    with ScriptedEndpoint(planting(fault, 99)).serving() as endpoint:
        entries = annotate(data, endpoint, tries=2)
    for (_, dimension, _), entry in entries.items():
        if dimension == "visual_quality":
            assert entry.critique is not None
            continue
        assert entry.critique is None
        assert (entry.tries, len(entry.faults)) == (2, 2)
        assert reason in entry.faults[-1][0]
        assert entry.answer


def test_an_answer_that_is_cut_off_is_a_fault(tmp_path):
    def script(asked):
        return good(asked) if asked.reads or asked.tries else Reply(critique(4, regions=True), finish="length")

    data = write(tmp_path, [row(1, {"instruction_following": 4}, {"instruction_following": 4})])
    with ScriptedEndpoint(script).serving() as endpoint:
        entries = annotate(data, endpoint)
    assert [entry.faults for entry in entries.values()] == [[["cut off at the token limit: be shorter"]]] * 2


def test_words_about_two_edits_keep_their_order(tmp_path):
    """People gave 3 and 2. Words one step off are let pass, but not those that turn the order around."""

    def script(asked):
        if asked.reads or asked.tries:
            return good(asked)
        return Reply(critique({3: 2, 2: 3}[judgement(asked)], regions=True))

    data = write(tmp_path, [row(1, {"instruction_following": 3}, {"instruction_following": 2})])
    with ScriptedEndpoint(script).serving() as endpoint:
        first, second = annotate(data, endpoint).values()
    assert (first.tries, first.read) == (1, 2)
    assert (second.tries, second.read) == (2, 2)
    assert "those about an edit that people gave 3 for 2" in second.faults[0][0]


def test_verdicts_without_labels(tmp_path):
    data = write(tmp_path, [row(1, {}, {}, preferences={"instruction_following": "second", "visual_quality": "tie"})])

    def script(asked):
        turned = not asked.reads and judgement(asked) == "worse" and not asked.tries
        return Reply(critique("better", regions=True)) if turned else good(asked)

    with ScriptedEndpoint(script).serving() as endpoint:
        entries = annotate(data, endpoint)
    assert {(key[1], key[2]): entry.read for key, entry in entries.items()} == {
        ("instruction_following", 0): "worse",
        ("instruction_following", 1): "better",
        ("visual_quality", 0): "equal",
        ("visual_quality", 1): "equal",
    }
    turned = entries["edit 1", "instruction_following", 0]
    assert turned.faults == [["the words argue that the edit is better, and people found it worse"]]


# --- good rows --------------------------------------------------------------------------------------------------------


def test_good_rows_are_accepted_whoever_stumbles_now_and_then(tmp_path):
    """100 critiques; of every third row, the first answers about following have a fault: at least 95 are accepted."""
    rows = [row(n, both(1 + n % 4, 4 - n % 4), both(1 + (n + 1) % 4, 4)) for n in range(25)]
    faults = [fault for fault, _ in PLANTED.values()]

    def script(asked):
        number = int(asked.instruction.removeprefix("edit ") or 1)
        if asked.reads or asked.tries or number % 3:
            return good(asked)
        return Reply(faults[number // 3 % len(faults)](asked))

    with ScriptedEndpoint(script).serving() as endpoint:
        entries = annotate(write(tmp_path, rows), endpoint)
    assert len(entries) == 100
    assert sum(entry.critique is not None for entry in entries.values()) >= 95
    assert sum(entry.tries > 1 for entry in entries.values()) == 18


def test_without_verification_nothing_is_read_back(tmp_path):
    data = write(tmp_path, [row(1, both(4, 4), both(1, 1))])
    with ScriptedEndpoint(good).serving() as endpoint:
        entries = annotate(data, endpoint, verify=False)
    assert len(endpoint.asked) == 4
    assert {entry.read for entry in entries.values()} == {None}


def test_what_is_read_back_names_no_score(tmp_path):
    def script(asked):
        if asked.reads:
            assert "4/4" not in asked.texts[0]
            return Reply('{"score": 4}')
        return Reply('{"reasoning": "4/4, flawless"}')

    data = write(tmp_path, [row(1, {"visual_quality": 4}, {"visual_quality": 4})])
    with ScriptedEndpoint(script).serving() as endpoint:
        assert all(entry.critique for entry in annotate(data, endpoint).values())


def test_a_reading_that_makes_no_sense_is_asked_for_again(tmp_path):
    def script(asked):
        return Reply("four") if asked.reads and not asked.tries else good(asked)

    data = write(tmp_path, [row(1, {"visual_quality": 4}, {"visual_quality": 4})])
    with ScriptedEndpoint(script).serving() as endpoint:
        assert {(entry.tries, entry.read) for entry in annotate(data, endpoint).values()} == {(1, 4)}


# --- tokens, concurrency, going on ------------------------------------------------------------------------------------


def test_tokens_of_every_answer_are_counted(tmp_path):
    data = write(tmp_path, [row(1, {"instruction_following": 4}, {"instruction_following": 4})])
    with ScriptedEndpoint(planting(PLANTED["no JSON"][0], 1)).serving() as endpoint:
        entries = annotate(data, endpoint)
    # two answers and one reading each
    assert {(entry.tokens_in, entry.tokens_out, entry.unmetered) for entry in entries.values()} == {(3000, 300, 0)}


def test_answers_without_a_count_are_told(tmp_path):
    data = write(tmp_path, [row(1, {"visual_quality": 4}, {"visual_quality": 4})])
    with ScriptedEndpoint(lambda asked: Reply(good(asked).text, usage=None)).serving() as endpoint:
        entries = annotate(data, endpoint)
    assert {(entry.tokens_in, entry.unmetered) for entry in entries.values()} == {(0, 2)}


def test_no_more_at_once_than_wanted(tmp_path):
    rows = [row(n, both(4, 4), both(1, 1)) for n in range(10)]
    with ScriptedEndpoint(good).serving() as endpoint:
        annotate(write(tmp_path, rows), endpoint, concurrency=3)
    assert endpoint.most_at_once <= 3


def test_a_second_run_asks_nothing(tmp_path):
    data = write(tmp_path, [row(n, both(4, 4), both(1, 1)) for n in range(3)])
    with ScriptedEndpoint(good).serving() as endpoint:
        first = annotate(data, endpoint)
        asked = len(endpoint.asked)
        assert annotate(data, endpoint) == first
        assert len(endpoint.asked) == asked


def test_what_was_given_up_is_tried_again_only_if_wanted(tmp_path):
    data = write(tmp_path, [row(1, {"instruction_following": 4}, {"instruction_following": 1})])
    with ScriptedEndpoint(planting(contrary, 99)).serving() as endpoint:
        annotate(data, endpoint)
        asked = len(endpoint.asked)
        endpoint.script = good
        assert not any(entry.critique for entry in annotate(data, endpoint).values())
        assert len(endpoint.asked) == asked
        assert all(entry.critique for entry in annotate(data, endpoint, retry_rejected=True).values())


def test_an_endpoint_that_breaks_ends_the_run_and_keeps_what_it_had(tmp_path):
    data = write(tmp_path, [row(n, both(4, 4), both(1, 1)) for n in range(5)])

    def script(asked):
        return good(asked) if len(endpoint.asked) <= 20 else Reply("no such key", 401)

    with ScriptedEndpoint(script).serving() as endpoint:
        with pytest.raises(EndpointError, match="HTTP 401: no such key"):
            annotate(data, endpoint, concurrency=1)
        endpoint.script = good
        before = len(endpoint.asked)
        entries = annotate(data, endpoint, concurrency=1)
    assert len(entries) == 20
    assert len(endpoint.asked) - before == 2 * (20 - 10)  # a critique and its reading for what was left


def test_another_row_on_a_line_is_refused(tmp_path):
    with ScriptedEndpoint(good).serving() as endpoint:
        annotate(write(tmp_path, [row(1, both(4, 4), both(1, 1))]), endpoint)
        with pytest.raises(JournalError, match="about line 1, which has changed since"):
            annotate(write(tmp_path, [row(2, both(4, 4), both(1, 1))]), endpoint)


def test_one_request_that_is_refused_is_one_reject(tmp_path):
    data = write(tmp_path, [row(n, both(4, 4), both(1, 1)) for n in range(3)])

    def script(asked):
        return Reply("image too large", 400) if asked.instruction == "edit 0" else good(asked)

    with ScriptedEndpoint(script).serving() as endpoint:
        entries = annotate(data, endpoint)
    refused = {key for key, entry in entries.items() if entry.critique is None}
    assert refused == {("edit 0", "instruction_following", 0), ("edit 0", "instruction_following", 1)}
    entry = entries["edit 0", "instruction_following", 0]
    assert entry.faults == [["the endpoint refused it: HTTP 400: image too large"]]


def test_an_endpoint_that_refuses_everything_is_not_the_rows_fault(tmp_path):
    data = write(tmp_path, [row(n, both(4, 4), both(1, 1)) for n in range(10)])
    with ScriptedEndpoint(lambda _: Reply("response_format is not supported", 400)).serving() as endpoint:
        with pytest.raises(EndpointError, match=r"refuses every request, most recently with .*response_format"):
            annotate(data, endpoint, concurrency=1)
        assert len(endpoint.asked) == MAX_REFUSALS
        endpoint.script = good
        assert all(entry.critique for entry in annotate(data, endpoint).values())


def test_an_image_that_cannot_be_read_is_a_reject(tmp_path):
    data = write(tmp_path, [row(1, {"visual_quality": 4}, {"visual_quality": 4})])
    (tmp_path / "images" / "1-1.png").write_bytes(b"no image")
    with ScriptedEndpoint(good).serving() as endpoint:
        first, second = annotate(data, endpoint).values()
    assert first.critique is not None
    assert (second.critique, second.tries) == (None, 0)
    assert "1-1.png: not a PNG" in second.faults[0][0]

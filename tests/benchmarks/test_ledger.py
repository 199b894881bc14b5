"""The books of the restart and chaos runs: they must show what went wrong."""

import random

import pytest
from benchmarks.known_rewards import KnownGroup
from benchmarks.ledger import Ledger
from benchmarks.soak_jobs import Jobs

GROUP = KnownGroup(3, 2)


def test_a_group_answered_once_and_rightly_is_in_order():
    ledger = Ledger()
    ledger.group_answered(GROUP, list(GROUP.rewards))
    assert (ledger.lost(2), ledger.doubled, ledger.wrong) == (0, 0, 0)


def test_rewards_in_the_wrong_order_are_wrong():
    ledger = Ledger()
    ledger.group_answered(GROUP, list(GROUP.rewards)[::-1])
    assert ledger.wrong == 2


def test_a_missing_answer_is_lost_and_a_second_one_doubled():
    ledger = Ledger()
    ledger.answered(3, 0, 0.5, 0.5)
    ledger.answered(3, 0, 0.5, 0.5)
    assert (ledger.lost(2), ledger.doubled) == (1, 1)


def test_no_two_candidates_are_alike():
    groups = [KnownGroup(number, 3) for number in range(3)]
    images = [image for group in groups for image in (group.source, *group.edited)]
    assert len(set(images)) == 12
    assert len({reward for group in groups for reward in group.rewards}) == 9


@pytest.fixture
def jobs() -> Jobs:
    return Jobs(random.Random(0))


def answer(jobs: Jobs, job: dict, edit: int) -> int | None:
    return jobs.line({"job": job["job"], "edit": edit, "reward": KnownGroup(job["group"], 12).rewards[edit]})


def test_a_job_is_done_with_its_last_answer(jobs):
    job = jobs.next(fresh=True)
    assert [answer(jobs, job, edit) for edit in job["edits"]] == [None] * 11 + [job["job"]]
    assert (jobs.candidates, jobs.unfinished, jobs.ledger.wrong) == (12, 0, 0)


def test_what_a_killed_client_had_not_answered_goes_to_the_next(jobs):
    job = jobs.next(fresh=True)
    answer(jobs, job, 4)
    jobs.left_behind(job["job"])
    assert jobs.next(fresh=False) == job | {"edits": [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11]}
    assert jobs.next(fresh=False) is None


def test_an_answer_to_a_job_that_is_done_is_doubled(jobs):
    job = jobs.next(fresh=True)
    for edit in job["edits"]:
        answer(jobs, job, edit)
    answer(jobs, job, 0)
    assert jobs.ledger.doubled == 1


def test_an_error_is_no_answer(jobs):
    job = jobs.next(fresh=True)
    jobs.line({"job": job["job"], "edit": 0, "error": "internal"})
    assert (jobs.ledger.lost(12), jobs.ledger.errors["internal"]) == (12, 1)

"""One verdict for all ranks: two real processes on gloo, each running ``rank_program.py`` once."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from client.scripted_server import Reply, Request, ScriptedServer, refusal, reward_of, score_all
from jrm_client.flow_grpo import jrm_score

PROGRAM = Path(__file__).with_name("rank_program.py")
EDITS = [[b"A", b"B"], [b"C", b"D", b"E"]]
EXPECTED = [[reward_of(edit) for edit in edits] for edits in EDITS]


def updated(request: Request) -> Reply:
    reply = score_all(request)
    reply.json["fingerprint"] = "beef"
    return reply


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the steps of the program gave, by rank."""
    rendezvous = tmp_path_factory.mktemp("ranks") / "rendezvous"
    environment = {**os.environ, "PYTHONPATH": str(PROGRAM.parents[1]), "GLOO_SOCKET_IFNAME": "lo"}
    with (
        ScriptedServer() as good,
        ScriptedServer(then=refusal(401, "unauthorized")) as refusing,
        ScriptedServer(then=updated) as other,
    ):
        processes = [
            subprocess.Popen(
                [sys.executable, PROGRAM, str(rank), rendezvous, good.url, refusing.url, other.url],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(2)
        ]
        try:
            outputs = [process.communicate(timeout=120) for process in processes]
        finally:
            for process in processes:  # also the one that waits for a rank which has failed
                process.kill()
                process.communicate()
    for process, (_, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors
    return [json.loads(output) for output, _ in outputs]


def test_success_changes_nothing(ranks: list[dict[str, Any]]) -> None:
    for rank, found in enumerate(ranks):
        assert found["score"] == found["early"] == found["trl"] == EXPECTED[rank]
        assert found["reward"]["avg"] == EXPECTED[rank]
        assert list(found["reward"]) == ["avg", "instruction_following", "visual_quality"]


def test_a_rank_without_images_takes_part_and_learns_its_keys(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["no images"]["avg"] == EXPECTED[0]
    assert ranks[1]["no images"] == {"avg": [], "instruction_following": [], "visual_quality": []}
    assert ranks[0]["no images anywhere"] == ranks[1]["no images anywhere"] == {"avg": []}


def test_a_candidate_that_trl_can_leave_out_is_no_failure_of_its_rank(ranks: list[dict[str, Any]]) -> None:
    assert [found["trl, no score"] for found in ranks] == [EXPECTED[0], [reward_of(b"A"), None]]


@pytest.mark.parametrize(
    ("step", "kind", "start"),
    [
        ("refused", "APIStatusError", "rank 1: HTTP 401 (unauthorized)"),
        ("refused with no images", "APIStatusError", "rank 0: HTTP 401 (unauthorized)"),
        ("wrong", "ValueError", "rank 0: prompts: 0 for 1 images"),
        ("a missing file", "FileNotFoundError", "[Errno 2] rank 1: "),
        ("an edit without a score", "ScoreError", "rank 1: 1 of 2 candidates have no score"),
        ("both", "ValueError", "rank 0 (and 1): prompts: 0 for 1 images"),
        ("two checkpoints", "FingerprintMismatch", "rank 1 has its scores from the checkpoint beef, rank 0 from f00d"),
        ("trl, refused", "APIStatusError", "rank 1: HTTP 401 (unauthorized)"),
        ("world group", "APIStatusError", "rank 1: HTTP 401 (unauthorized)"),
    ],
)
def test_what_fails_on_one_rank_fails_alike_on_all(
    ranks: list[dict[str, Any]], step: str, kind: str, start: str
) -> None:
    assert ranks[0][step] == ranks[1][step]
    assert ranks[0][step][0] == kind
    assert ranks[0][step][1].startswith(start)


def test_the_next_call_is_a_new_one(ranks: list[dict[str, Any]]) -> None:
    for rank, found in enumerate(ranks):
        before, failure, after = found["goes on"]
        assert before == after == EXPECTED[rank]
        assert failure == ["ValueError", "rank 1: ref_images: 0 for 3 images"]


def test_calls_from_threads_are_compared_one_by_one(ranks: list[dict[str, Any]]) -> None:
    for rank, found in enumerate(ranks):
        failures = [outcome for outcome in found["threads"] if outcome != EXPECTED[rank]]
        assert failures == [["ValueError", "rank 0: ref_images: 0 for 2 images"]]


def test_a_rank_may_stay_by_itself(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["alone"] == ranks[0]["group"] == ranks[0]["two checkpoints, unpinned"] == EXPECTED[0]
    assert ranks[1]["two checkpoints, unpinned"] == EXPECTED[1]
    for step in ("alone", "group"):
        assert ranks[1][step][0] == "APIStatusError"
        assert ranks[1][step][1].startswith("HTTP 401")


def test_a_fork_of_a_rank_is_no_rank(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["fork"] == 0


def test_a_rank_that_died_is_an_error(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["death"] == ["JRMError", True]


def test_insisting_on_ranks_where_there_are_none() -> None:
    function = jrm_score("http://127.0.0.1:9", distributed=True)
    with pytest.raises(RuntimeError, match="init_process_group"):
        function([], [], None, [])
    function.close()

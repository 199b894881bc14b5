"""What one rank does in test_ranks.py: ``python rank_program.py RANK RENDEZVOUS GOOD REFUSING UPDATED``.

Prints a JSON object: what came of each step, a value or [type, message].
"""

import json
import os
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
import torch.distributed as dist

from jrm_client.flow_grpo import jrm_reward, jrm_score
from jrm_client.trainers.trl import jrm_reward as trl_reward

RANK, (RENDEZVOUS, GOOD, REFUSING, UPDATED) = int(sys.argv[1]), sys.argv[2:]


def batch(*edits: bytes) -> tuple[Any, ...]:
    return list(edits), ["red"] * len(edits), None, [b"S"] * len(edits)


EDITS = batch(b"A", b"B") if RANK == 0 else batch(b"C", b"D", b"E")


def outcome(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:
        return [type(error).__name__, str(error)]


def with_function(make: Callable[..., Any], url: str, *call: Any, **options: Any) -> Any:
    function = make(url, max_retries=0, **options)
    try:
        return outcome(lambda: function(*call)[0])
    finally:
        function.close()


def in_trl(url: str, *edits: bytes, **options: Any) -> Any:
    reward = trl_reward(url, edited=str.encode, max_retries=0, **options)
    texts = [edit.decode() for edit in edits]
    columns = {"source": [b"S"] * len(texts), "instruction": ["red"] * len(texts)}
    return outcome(lambda: reward(prompts=texts, completions=texts, **columns))


def goes_on_after_a_failure() -> list[Any]:
    function = jrm_score(GOOD)
    wrong = (*EDITS[:3], []) if RANK == 1 else EDITS
    try:
        return [outcome(lambda call=call: function(*call)[0]) for call in (EDITS, wrong, EDITS)]
    finally:
        function.close()


def from_threads() -> list[Any]:
    """Eight threads, as trainers use; the third call of rank 0 has a source too few."""
    function = jrm_score(GOOD)
    calls = [(*EDITS[:3], []) if (RANK, number) == (0, 2) else EDITS for number in range(16)]
    with ThreadPoolExecutor(8) as pool:
        futures: list[Future[Any]] = [pool.submit(function, *call) for call in calls]
        found = [outcome(lambda future=future: future.result()[0]) for future in futures]
    function.close()
    return found


def of_a_group() -> Any:
    only_rank_0 = dist.new_group([0])
    return with_function(jrm_score, REFUSING if RANK == 1 else GOOD, *EDITS, distributed=only_rank_0)


def in_a_fork() -> int:
    """Rank 0 forks; the child is no rank, so it must not wait for rank 1, which does nothing here."""
    if RANK != 0:
        return 0
    function = jrm_score(GOOD, distributed=False)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if jrm_score(GOOD)(*EDITS) == function(*EDITS) else 2
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def when_a_rank_dies() -> Any:
    function = jrm_score(GOOD)
    if RANK == 1:
        return None
    found = outcome(lambda: function(*EDITS))
    return found[0], "did one of them end?" in found[1]


def main() -> None:
    torch.set_num_threads(1)
    early = jrm_score(GOOD)  # made before there is a world: it joins at its first call
    dist.init_process_group("gloo", init_method=f"file://{RENDEZVOUS}", rank=RANK, world_size=2)
    found = {
        "early": outcome(lambda: early(*EDITS)[0]),
        "score": with_function(jrm_score, GOOD, *EDITS),
        "reward": with_function(jrm_reward, GOOD, *EDITS),
        "no images": with_function(jrm_reward, GOOD, *(EDITS if RANK == 0 else batch())),
        "no images anywhere": with_function(jrm_reward, GOOD, *batch()),
        "refused": with_function(jrm_reward, REFUSING if RANK == 1 else GOOD, *EDITS),
        "refused with no images": with_function(jrm_reward, REFUSING, *(EDITS if RANK == 0 else batch())),
        "wrong": with_function(jrm_reward, GOOD, *(EDITS if RANK == 1 else ([b"A"], [], None, [b"S"]))),
        "a missing file": with_function(jrm_score, GOOD, *(EDITS if RANK == 0 else batch("/no/such/file"))),
        "an edit without a score": with_function(jrm_score, GOOD, *(EDITS if RANK == 0 else batch(b"A", b"BAD"))),
        "both": with_function(jrm_score, REFUSING, *(EDITS if RANK == 1 else ([b"A"], [], None, [b"S"]))),
        "two checkpoints": with_function(jrm_score, UPDATED if RANK == 1 else GOOD, *EDITS),
        "two checkpoints, unpinned": with_function(
            jrm_score, UPDATED if RANK == 1 else GOOD, *EDITS, pin_fingerprint=False
        ),
        "alone": with_function(jrm_score, REFUSING if RANK == 1 else GOOD, *EDITS, distributed=False),
        "goes on": goes_on_after_a_failure(),
        "threads": from_threads(),
        "group": of_a_group(),
        "world group": with_function(jrm_score, REFUSING if RANK == 1 else GOOD, *EDITS, distributed=dist.group.WORLD),
        "trl": in_trl(GOOD, *EDITS[0]),
        "trl, no score": in_trl(GOOD, *(EDITS[0] if RANK == 0 else [b"A", b"BAD"])),
        "trl, refused": in_trl(REFUSING if RANK == 1 else GOOD, *EDITS[0]),
        "fork": in_a_fork(),
        "death": when_a_rank_dies(),
    }
    print(json.dumps(found), flush=True)
    os._exit(0)  # no clean farewell: rank 0 may still be waiting for rank 1


if __name__ == "__main__":
    main()

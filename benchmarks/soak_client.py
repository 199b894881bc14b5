"""``python -m benchmarks.soak_client URL,URL``: a process that scores what it is told, and can be killed at any moment.

Reads jobs from stdin, one JSON object a line: ``{"job": 7, "group": 3, "edits": [0, 5, 11]}``. Every edit gets a line
on stdout when it is answered, ``{"job": 7, "edit": 5, "reward": 0.1}``; before that, it may get some with a typed
error, ``{"job": 7, "edit": 5, "error": "internal"}``, after each of which it is sent again. A call that fails as a
whole is a line ``{"job": 7, "failure": "…"}``, and is made again. Ends with its stdin.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence

from jrm_client import AsyncJRMClient, JRMError, ScoreError

from .known_rewards import KnownGroup

EDITS = 12


def _say(**line: object) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


async def _score(client: AsyncJRMClient, job: int, number: int, edits: Sequence[int]) -> None:
    group = KnownGroup(number, EDITS)
    while edits:
        images = [group.edited[edit] for edit in edits]
        try:
            scores = (await client.score_group(group.source, group.instruction, images)).scores
        except ScoreError as error:
            for position, failed in error.failed.items():
                _say(job=job, edit=edits[position], error=failed.code)
            rest = [edits[position] for position in sorted(error.failed)]
            scores = tuple(score for score in error.scores if score is not None)
            edits = [edit for edit in edits if edit not in rest]
        except JRMError as failure:
            _say(job=job, failure=str(failure))
            continue
        else:
            rest = []
        for edit, score in zip(edits, scores, strict=True):
            _say(job=job, edit=edit, reward=score.reward)
        edits = rest


async def _serve(urls: str) -> None:
    async with AsyncJRMClient(urls, timeout=60) as client, asyncio.TaskGroup() as tasks:
        while line := await asyncio.to_thread(sys.stdin.readline):
            job = json.loads(line)
            tasks.create_task(_score(client, job["job"], job["group"], job["edits"]))


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1]))

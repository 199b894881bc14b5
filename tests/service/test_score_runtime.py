"""What is served, asleep and replaced, with fakes in place of devices."""

import asyncio
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from jrm_service.errors import CheckpointError, NotReady, ReloadFailed
from jrm_service.metrics import Metrics
from jrm_service.score_runtime import RunningModel, ScoreRuntime
from jrm_service.scoring.backend import StartFailed
from jrm_service.scoring.fakes import FakePreparer
from jrm_service.scoring.line import WaitingLine
from jrm_service.settings import Settings
from service.scoring.support import LoopWorker, run
from support import servers

ELSEWHERE = Path("another")


class Loading:
    """Loads a fake each time, whose workers it keeps; a checkpoint of the name "another" raises ``failure``."""

    def __init__(self, failure: Exception | None = None, failing_starts: int = 0) -> None:
        self.workers: list[LoopWorker] = []
        self._failure = failure
        self._failing_starts = failing_starts

    async def __call__(self, checkpoint: Path | None) -> RunningModel:
        if checkpoint == ELSEWHERE and self._failure is not None:
            raise self._failure
        worker = LoopWorker(seconds=0.01, failing_starts=self._failing_starts)
        await worker.start()
        self.workers.append(worker)
        return RunningModel(servers.FAKE_MODEL, FakePreparer(), [worker])


async def started(loading: Loading) -> ScoreRuntime:
    line = WaitingLine(max_body_bytes=1000, max_queue=10)
    runtime = ScoreRuntime(
        Settings(backend="fake"), loading, lambda _model: None, line, Metrics(CollectorRegistry()), lambda _error: None
    )
    await runtime.start()
    return runtime


def test_a_sleep_waits_for_what_was_replaced_to_let_go_of_its_device():
    async def main() -> None:
        loading = Loading()
        runtime = await started(loading)
        service = await runtime.service(1.0)
        async with service.in_progress():  # a request is on its way to it
            await runtime.reload(ELSEWHERE, beside=True)
            assert await runtime.service(1.0) is not service
            asleep = asyncio.create_task(runtime.sleep("drop"))
            await asyncio.sleep(0.05)
            assert not asleep.done()
            assert loading.workers[0].ends == 0
        assert await asleep == "drop"
        assert [worker.ends for worker in loading.workers] == [1, 1]
        await runtime.stop()

    run(main())


@pytest.mark.parametrize(
    ("failure", "raised"),
    [(CheckpointError(["damaged"]), CheckpointError), (StartFailed("no room"), ReloadFailed)],
)
def test_what_is_wrong_with_the_new_one_is_told_also_where_the_old_one_does_not_come_back(failure, raised):
    async def main() -> None:
        runtime = await started(Loading(failure, failing_starts=1))
        with pytest.raises(raised, match=str(failure)):
            await runtime.reload(ELSEWHERE, beside=False)
        assert runtime.state()[0] == "sleeping"
        await runtime.wake()  # there is room again
        assert runtime.state()[0] == "ready"
        await runtime.stop()

    run(main())


def test_a_wake_without_room_sleeps_on():
    async def main() -> None:
        runtime = await started(Loading(failing_starts=1))
        assert await runtime.sleep("drop") == "drop"
        with pytest.raises(NotReady, match="a device cannot be taken: no such device"):
            await runtime.wake()
        assert runtime.state()[0] == "sleeping"
        await runtime.wake()
        await runtime.stop()

    run(main())

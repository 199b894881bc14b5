from collections.abc import Iterator

import pytest

from trainers.reward_server import RewardServer, serving


@pytest.fixture(scope="module")
def server() -> Iterator[RewardServer]:
    with serving() as server:
        yield server

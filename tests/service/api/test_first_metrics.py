"""What the metrics say before the first request: whether a part is ready, and zeros for what can be counted."""

import threading

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from jrm_service.api.errors import STATUS
from jrm_service.api.keys import Key, digest
from jrm_service.errors import CandidateError
from jrm_service.settings import Settings
from support import servers


def read(url: str) -> dict[tuple[str, ...], float]:
    """Sample name and label values -> value."""
    families = text_string_to_metric_families(httpx.get(f"{url}/metrics").text)
    return {(one.name, *one.labels.values()): one.value for family in families for one in family.samples}


@pytest.fixture
def keys(tmp_path):
    path = tmp_path / "keys"
    path.write_text(Key("alice", digest(b"secret")).line())
    return path


def test_a_part_is_ready_when_it_takes_requests_and_no_sooner():
    loaded = threading.Event()

    def load():
        assert loaded.wait(30)
        return servers.fake_parts()

    exposed = []
    with servers.starting(load=load, expose=exposed) as url:
        assert read(url)["jrm_ready", "score"] == 0
        loaded.set()
        while httpx.get(f"{url}/health/ready").status_code != 200:
            assert exposed[0].thread.is_alive()
        assert read(url)["jrm_ready", "score"] == 1
        assert ("jrm_ready", "explain") not in read(url)


def test_whatever_can_end_a_candidate_is_counted_from_zero(fake_server):
    counted = read(fake_server)
    outcomes = {kind.code for kind in CandidateError.__subclasses__()} | {"ok"}
    assert outcomes >= {code for code, status in STATUS.items() if status in (422, 500, 504)}
    assert all(("jrm_candidates_total", outcome) in counted for outcome in outcomes)


def test_what_alerts_wait_for_is_counted_from_zero(keys):
    with servers.serving(Settings(backend="fake", api_keys_file=keys, device="cpu,cpu")) as url:
        counted = read(url)
    assert {counted["jrm_key_reloads_total", result] for result in ("ok", "failed")} == {0}
    failures = {key[1:]: value for key, value in counted.items() if key[0] == "jrm_worker_failures_total"}
    assert failures == {("cpu", reason, worker): 0 for reason in ("hung", "lost") for worker in ("0", "1")}


def test_the_budget_of_a_batch_is_shown():
    with servers.serving(Settings(backend="fake", max_batch_tokens=5000)) as url:
        assert read(url)["jrm_batch_tokens_limit",] == 5000

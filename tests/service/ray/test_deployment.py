"""JRM Serve on a real local Ray: the same scores, the same errors, and nothing lost when replicas come and go."""

import asyncio
import hashlib
import os
import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest

from jrm_client import AsyncJRMClient, JRMClient
from jrm_service.settings import Settings
from support import processes, ray_cluster, servers
from support.pictures import encode, photo
from support.ray_cluster import until

# Ray is imported by the fixtures: it takes seconds, which `make test` need not wait for, and its own code warns.
pytestmark = [pytest.mark.heavy, pytest.mark.timeout(600), pytest.mark.filterwarnings("default")]

ROOT = Path(__file__).parents[3]
SOURCE, *EDITS = [
    ROOT / f"examples/scene/{name}.png" for name in ("source", "recoloured", "green-instead", "blurred", "unchanged")
]
GROUPS = [
    (SOURCE, "make the red square blue", EDITS),
    (SOURCE, "make the red square green", EDITS[:2]),
    (EDITS[0], "blur the picture", EDITS[1:]),
]
ROUNDING = 1e-5  # what neighbours in a batch may change (docs/performance.md); edits differ by far more


@pytest.fixture(scope="module")
def cluster():
    with ray_cluster.running(RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S="1") as cluster:
        yield cluster


@pytest.fixture(scope="module")
def expected():
    """What a server without Ray answers, on one thread: Ray sets as many as a replica has CPUs."""
    with processes.serving("--cache-entries", "0", OMP_NUM_THREADS="1") as plain:
        plain.wait_until_ready()
        with JRMClient(plain.url) as client:
            yield one_by_one(client)


def one_by_one(client):
    """The scores of each group. How a group is cut into batches depends on how fast it arrives, and a batch rounds."""
    return [[client.score(source, edit, instruction) for edit in edits] for source, instruction, edits in GROUPS]


def replicas_are(cluster, count, app="jrm"):
    """Whether so many replicas serve, and none is on its way up or down."""
    return cluster.states(app) == {"RUNNING": count} and len(cluster.replicas(app)) == count


def under_load(cluster, expected, disturb, *, app="jrm", prefix="", groups=GROUPS, callers=4, **options):
    """Score without a pause, through the proxy and a handle, until ``disturb`` has run, and once more after that."""
    over = asyncio.Event()

    async def score_all(client):
        for group, scores in zip(groups, expected, strict=True):
            answered = await client.score_group(*group)
            assert len(answered) == len(scores)
            rewards = [score.reward for score in scores]
            np.testing.assert_allclose(answered.rewards, rewards, rtol=0, atol=ROUNDING)

    async def caller(client):
        while not over.is_set():
            await score_all(client)
        await score_all(client)

    async def run():
        by_handle = AsyncJRMClient.from_ray(cluster.handle(app), timeout=120, **options)
        by_proxy = AsyncJRMClient(f"{cluster.url}{prefix}", timeout=120, **options)
        async with by_proxy, asyncio.TaskGroup() as tasks:
            for client in [by_proxy, by_handle] * (callers // 2):
                tasks.create_task(caller(client))
            await asyncio.to_thread(disturb)
            over.set()

    asyncio.run(run())


def test_the_scores_are_those_of_a_server_without_ray(cluster, expected):
    handle = cluster.run("jrm", num_replicas=2, cache_entries=0)
    with JRMClient(cluster.url) as by_proxy, JRMClient.from_ray(handle) as by_handle:
        assert one_by_one(by_proxy) == expected
        assert one_by_one(by_handle) == expected
        with pickle.loads(pickle.dumps(by_handle)) as elsewhere:
            assert one_by_one(elsewhere) == expected


def test_a_replica_that_is_killed_under_load_loses_nothing_and_is_replaced(cluster, expected):
    def kill():
        until(lambda: all(scored(cluster).values()))
        os.kill(victim, signal.SIGKILL)

    victim, _ = cluster.replicas("jrm")
    [worker] = processes.children(victim, "jrm_service.model.main")
    under_load(cluster, expected, kill)
    until(lambda: not Path(f"/proc/{worker}").exists())  # nothing holds the device of a replica that is gone
    until(lambda: victim not in cluster.replicas("jrm") and replicas_are(cluster, 2))
    under_load(cluster, expected, lambda: until(lambda: all(scored(cluster).values())))


def test_a_new_version_is_rolled_out_under_load(cluster, expected):
    before = cluster.replicas("jrm")
    under_load(cluster, expected, lambda: cluster.run("jrm", cache_entries=0), callers=2, max_retries=0)
    until(lambda: replicas_are(cluster, 1))
    assert not {*cluster.replicas("jrm")} & {*before}


def scored(cluster):
    """Candidates that each replica of ``jrm`` has scored."""
    replies = httpx.get(f"{cluster.url}/metrics", timeout=30).text.splitlines()
    lines = [line for line in replies if line.startswith("jrm_candidates_total{") and 'outcome="ok"' in line]
    assert lines
    return {line.split('replica="')[1].split('"')[0]: float(line.rsplit(" ", 1)[1]) for line in lines}


# --- made-up scores, behind a prefix ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    keys = tmp_path_factory.mktemp("keys") / "keys"
    lines = {"trainer": "", "operator": "scope=admin", "slow": "candidates_per_minute=1"}
    keys.write_text(
        "".join(f"{name} sha256:{hashlib.sha256(name.encode()).hexdigest()} {more}\n" for name, more in lines.items())
    )
    return {"backend": "fake", "admin": True, "when_sleeping": "refuse", "api_keys_file": str(keys)}


def form(count, instruction="x"):
    edits = [("edited", ("e", encode(photo(24, 24, seed=seed)))) for seed in range(count)]
    return {"files": [("source", ("s", encode(photo(24, 24)))), *edits], "data": {"instruction": instruction}}


REFUSED = {
    "no key": ("", "POST", "/v1/score", form(1)),
    "no such path": ("trainer", "GET", "/v1/scores", {}),
    "wrong method": ("trainer", "GET", "/v1/score", {}),
    "malformed": ("trainer", "POST", "/v1/score", {"content": b"{", "headers": {"content-type": "application/json"}}),
    "no image": ("trainer", "POST", "/v1/score", {"json": {"source": "AAAA", "edited": "AAAA", "instruction": "x"}}),
    "all of the quota": ("slow", "POST", "/v1/score", form(2)),
    "over the quota": ("slow", "POST", "/v1/score", form(2)),
    "not for this key": ("trainer", "POST", "/v1/sleep", {"json": {}}),
    "reload is off": ("operator", "POST", "/v1/reload", {"json": {"checkpoint": "x"}}),
    "asleep": ("operator", "POST", "/v1/sleep", {"json": {}}),
    "sleeping": ("trainer", "POST", "/v1/score", form(1)),
    "not ready": ("", "GET", "/health/ready", {}),
    "awake": ("operator", "POST", "/v1/wake", {"json": {}}),
}


async def refusals(url, transport=None):
    """What is answered: for each case the status, the body without what differs, and some headers."""
    answers = {}
    async with httpx.AsyncClient(base_url=url, transport=transport, timeout=60) as client:
        for case, (key, method, path, request) in REFUSED.items():
            headers = {"x-request-id": case.replace(" ", "-"), **request.get("headers", {})}
            headers |= {"authorization": f"Bearer {key}"} if key else {}
            reply = await client.request(method, path, **{**request, "headers": headers})
            body = reply.json()
            for name in ("id", "created", "timings_ms", "seconds"):
                body.pop(name, None)
            kept = ("content-type", "x-request-id", "retry-after", "www-authenticate", "allow")
            answers[case] = (reply.status_code, body, {name: reply.headers.get_list(name) for name in kept})
    return answers


def test_refusals_are_those_of_a_server_without_ray(cluster, settings):
    with servers.serving(Settings(**settings)) as url:
        plain = asyncio.run(refusals(url))
    handle = cluster.run("fake", "/fake", **settings)

    from jrm_client.ray import HandleTransport

    statuses = {status for status, *_ in plain.values()}
    assert statuses >= {200, 401, 403, 404, 405, 422, 429, 503}
    through_handle = HandleTransport(handle)
    assert asyncio.run(refusals(through_handle.url, through_handle)) == plain
    cluster.run("fake", "/fake", **settings, reward_names="again")  # a replica whose keys have spent nothing yet
    assert asyncio.run(refusals(f"{cluster.url}/fake")) == plain


def test_sleep_and_metrics_are_of_every_replica(cluster, settings):
    handle = cluster.run("fake", "/fake", num_replicas=2, **settings)
    asleep = servers.Metric(f"{cluster.url}/fake")
    for client in (
        JRMClient(f"{cluster.url}/fake", api_key="operator"),
        JRMClient.from_ray(handle, api_key="operator"),
    ):
        with client:
            client.sleep()
            assert asleep("jrm_sleeping") == 2
            client.wake()
            assert asleep("jrm_sleeping") == 0


def test_queued_candidates_decide_how_many_replicas_there_are_and_one_that_goes_finishes_what_it_has(cluster):
    large, small = (SOURCE, "x", EDITS * 16), (SOURCE, "x", EDITS[:1])
    with servers.serving(Settings(backend="fake")) as url, JRMClient(url) as plain:
        expected = {len(group[2]): [list(plain.score_group(*group))] for group in (large, small)}
    quick = {"upscale_delay_s": 0, "downscale_delay_s": 10, "look_back_period_s": 3}
    cluster.run(
        "scaled", "/scaled", backend="fake", max_replicas=2, queued_candidates=2, autoscaling=quick, cache_entries=0
    )
    there = {"app": "scaled", "prefix": "/scaled"}
    until_there_are = lambda count: until(lambda: replicas_are(cluster, count, "scaled"))  # noqa: E731
    under_load(cluster, expected[64], lambda: until_there_are(2), groups=[large], **there)
    before = cluster.replicas("scaled")
    # Two callers have two candidates at most, which is what one replica is for. They never ask twice.
    under_load(cluster, expected[1], lambda: until_there_are(1), groups=[small], callers=2, max_retries=0, **there)
    assert {*cluster.replicas("scaled")} < {*before}


def test_serve_run(cluster):
    command = ["run", "--address", cluster.address, "--non-blocking", "--name", "cli", "--route-prefix", "/cli"]
    arguments = ["jrm_service.ray:app", "backend=fake", "num_replicas=2", "num_cpus=0.1"]
    subprocess.run([Path(sys.executable).with_name("serve"), *command, *arguments], check=True, capture_output=True)
    assert len(cluster.replicas("cli")) == 2
    with JRMClient(f"{cluster.url}/cli") as client:
        assert client.info()["backend"] == "fake"


def test_a_replica_whose_worker_does_not_come_back_is_replaced(cluster, tmp_path):
    checkpoint, elsewhere = tmp_path / "checkpoint", tmp_path / "elsewhere"
    shutil.copytree(ROOT / "service/jrm_service/model/bundled/jrm-tiny", checkpoint)
    cluster.run("sick", "/sick", checkpoint=str(checkpoint), options={"health_check_period_s": 1})
    [replica] = cluster.replicas("sick")
    checkpoint.rename(elsewhere)
    for worker in processes.children(replica, "jrm_service.model.main"):
        os.kill(worker, signal.SIGKILL)
    until(lambda: replica not in cluster.replicas("sick"))
    until(lambda: "not a folder" in cluster.message("sick"))  # what keeps the next one from starting
    elsewhere.rename(checkpoint)
    with JRMClient(f"{cluster.url}/sick", timeout=300) as client:
        assert client.score(SOURCE, EDITS[0], "make the red square blue").fingerprint
    assert cluster.replicas("sick") != [replica]


def test_arguments_are_checked_before_anything_is_deployed(cluster):
    from jrm_service.ray import deployment

    for wrong, message in [
        ({"chekpoint": "x"}, "chekpoint"),
        ({"port": 8000}, "Ray's proxies listen"),
        ({"device": "cuda:0"}, "num_gpus"),
        ({"num_gpus": 1.5}, "a part of one GPU"),
        ({"num_gpus": 0.5, "serve": "score,explain"}, "whole GPUs"),
        ({"num_replicas": 0}, "num_replicas"),
        ({"admin": True, "reload_root": "x"}, "reload_root"),
    ]:
        with pytest.raises(ValueError, match=message):
            deployment(**wrong)

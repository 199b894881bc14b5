"""Real servers that export all that there is: scores from a checkpoint, critiques from vLLM, and every way to fail."""

from __future__ import annotations

import base64
import contextlib
import itertools
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from jrm_service.api.keys import Key, digest
from jrm_service.scoring.fakes import FakeBackend, NaNBackend, RaisingBackend, SlowBackend
from jrm_service.settings import Settings
from support import collector, redis_servers, servers
from support.pictures import encode, photo
from support.prometheus import Target

from .queries import NAMESPACE

TESTS = str(Path(__file__).parents[1])
SECRET = "jrm_trainer-secret"


@dataclass
class Fleet:
    """``scorer`` has a checkpoint, Redis, keys and traces; ``fragile`` does what it is told; ``explainer`` does both.

    ``critic`` only explains, and nobody asks it to.
    """

    scorer: str
    fragile: str
    explainer: str
    critic: str
    gate: SlowBackend
    seeds: Iterator[int] = field(default_factory=itertools.count)

    @property
    def targets(self) -> list[Target]:
        """As in Kubernetes, with a namespace; one as in docker-compose, without."""
        inside = {"namespace": NAMESPACE}
        own = [Target(url, inside) for url in (self.scorer, self.fragile, self.critic)]
        return [*own, Target(self.explainer, {})]

    def exported(self) -> list[tuple[str, dict[str, str]]]:
        """(name, labels) of every sample of every server."""
        return [one for target in self.targets for one in samples(target.url)]

    def work(self) -> list[float]:
        """Let trainers do, once, what they do, right and wrong. Returns the rewards that the scorer gave."""
        rewards = self._score()
        self._fail()
        self._overload()
        body = {"source": self._image(), "edited": self._image(), "instruction": "make it blue", "max_tokens": 8}
        assert httpx.post(f"{self.explainer}/v1/explain", json=body, timeout=120).status_code == 200
        return rewards

    def _score(self) -> list[float]:
        headers = {"authorization": f"Bearer {SECRET}"}
        group = self._group("make it blue", 4)
        rewards = []
        for _ in range(2):  # the second time from the cache
            reply = httpx.post(f"{self.scorer}/v1/score", json=group, headers=headers, timeout=120)
            assert reply.status_code == 200, reply.text
            rewards += [score["reward"] for one in reply.json()["groups"] for score in one["scores"]]
        assert httpx.post(f"{self.scorer}/v1/score", json=group).status_code == 401
        source, edited = self._image(), self._image()
        compute = {"prompt": ["make it red"], "image": [edited], "condition_images": [[source]]}
        rewards += httpx.post(f"{self.scorer}/compute", json=compute, headers=headers, timeout=120).json()["rewards"]
        return rewards

    def _fail(self) -> None:
        self.gate.let_through()  # "boom" does not come so far
        for instruction in ("boom", "nan"):
            reply = httpx.post(f"{self.fragile}/score", json=self._group(instruction, 1), timeout=60)
            assert reply.status_code == 500, reply.text
        self.gate.wait_entered()

    def _overload(self) -> None:
        """One request holds the device; the next one, which has no time to wait, is refused."""
        url = f"{self.fragile}/v1/score"
        first = threading.Thread(target=httpx.post, args=(url,), kwargs={"json": self._group("wait", 1), "timeout": 60})
        first.start()
        self.gate.wait_entered()
        hurried = httpx.post(url, json=self._group("later", 1), headers={"x-jrm-timeout-ms": "1"})
        assert hurried.status_code == 429, hurried.text
        self.gate.let_through()
        first.join()

    def _group(self, instruction: str, edits: int) -> dict:
        images = [self._image() for _ in range(edits)]
        return {"groups": [{"source": self._image(), "instruction": instruction, "edits": images}]}

    def _image(self) -> str:
        return base64.b64encode(encode(photo(40, 40, seed=next(self.seeds)))).decode()


def samples(url: str) -> list[tuple[str, dict[str, str]]]:
    """(name, labels) of every sample that a server exports."""
    families = text_string_to_metric_families(httpx.get(f"{url}/metrics").text)
    return [(sample.name, sample.labels) for family in families for sample in family.samples]


@contextlib.contextmanager
def running(folder: Path, explainer: str) -> Iterator[Fleet]:
    """All of them, ready; ``explainer`` runs already."""
    keys = folder / "keys"
    keys.write_text(Key("trainer", digest(SECRET.encode()), candidates_per_minute=10_000).line())
    gate = SlowBackend(FakeBackend(), gated=True)
    backend = NaNBackend(
        RaisingBackend(gate, when=lambda candidate: candidate.instruction == "boom"),
        when=lambda candidate: candidate.instruction == "nan",
    )
    with contextlib.ExitStack() as stack:
        redis = stack.enter_context(redis_servers.real())
        spans = stack.enter_context(collector.collecting())
        settings = Settings(device="cpu", redis_url=redis.connection_url, api_keys_file=keys, otlp_endpoint=spans.url)
        scorer = stack.enter_context(servers.serving(settings))
        small = Settings(backend="fake", max_queue=1, max_candidates=1)
        fragile = stack.enter_context(servers.serving(small, load=lambda: servers.fake_parts(backend)))
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", os.pathsep.join([TESTS, os.environ.get("PYTHONPATH", "")]))
            explaining = Settings(device="cpu", serve="explain")
            critic = stack.enter_context(servers.serving(explaining, explain_module="support.scripted_explainer"))
        yield Fleet(scorer, fragile, explainer, critic, gate)

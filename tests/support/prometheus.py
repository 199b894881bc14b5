"""A Prometheus of its own: scrapes what it is told, evaluates rules, and answers queries."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml
from tools.fetch_prometheus import find

INTERVAL = "1s"


@dataclass(frozen=True)
class Target:
    """A server to scrape: its base URL, and labels beside ``job`` and ``instance``."""

    url: str
    labels: dict[str, str]


@dataclass(frozen=True)
class Prometheus:
    """Its HTTP API."""

    url: str

    def get(self, path: str, **parameters: Any) -> Any:
        """The data of a reply. Fails with what Prometheus says is wrong."""
        reply = httpx.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=30)
        assert reply.status_code == 200, reply.text
        return reply.json()["data"]

    def query(self, expr: str, at: float | None = None) -> list[tuple[dict[str, str], float]]:
        """(labels, value) of each sample at a time, in seconds since 1970; by default now."""
        data = self.get("query", query=expr, **({} if at is None else {"time": at}))
        if data["resultType"] == "scalar":
            return [({}, float(data["result"][1]))]
        return [(one["metric"], float(one["value"][1])) for one in data["result"]]

    def wait(self, what: Callable[[], bool], seconds: float = 60) -> None:
        """Wait for a condition."""
        deadline = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < deadline, "Prometheus did not come to that"
            time.sleep(0.05)

    def wait_for_scrapes(self, targets: int, after: float, scrapes: int = 2) -> float:
        """Wait until each target has answered so often since ``after``, and last time; returns when that was so."""
        at = after

        def all_answered() -> bool:
            nonlocal at
            at = time.time()
            range_ms = max(1, round(1000 * (at - after)))
            return len(self.query(f"sum_over_time(up[{range_ms}ms]) >= {scrapes} and up == 1", at)) == targets

        self.wait(all_answered)
        return at


@contextlib.contextmanager
def running(folder: Path, job: str, targets: Sequence[Target], rules: Path) -> Iterator[Prometheus]:
    """A Prometheus on a free port that scrapes the targets as one job and evaluates the rules."""
    config = {
        "global": {"scrape_interval": INTERVAL, "scrape_timeout": INTERVAL, "evaluation_interval": INTERVAL},
        "rule_files": [str(rules)],
        "scrape_configs": [
            {
                "job_name": job,
                "static_configs": [
                    {"targets": [target.url.removeprefix("http://")], "labels": target.labels} for target in targets
                ],
            }
        ],
    }
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [
        find("prometheus"),
        f"--config.file={file}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
        "--log.level=warn",
    ]
    with (folder / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        prometheus = Prometheus(f"http://{address}")

        def ready() -> bool:
            assert process.poll() is None, (folder / "log").read_text()
            with contextlib.suppress(httpx.TransportError):
                return httpx.get(f"{prometheus.url}/-/ready").status_code == 200
            return False

        try:
            prometheus.wait(ready)
            yield prometheus
        finally:
            process.terminate()

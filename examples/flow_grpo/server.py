"""A ``jrm serve`` of the experiment's own, and what its counters say."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

_START_SECONDS = 180.0
_COUNTERS = (
    "jrm_tokens_total",
    "jrm_images_total",
    "jrm_candidates_total",
    "jrm_cache_hits_total",
    "jrm_cache_shared_total",
)


@contextlib.contextmanager
def served(checkpoint: Path | None, log: Path, port: int = 0, flags: Sequence[str] = ()) -> Iterator[str]:
    """The URL of a server of this checkpoint (None: the bundled one), ready; it is ended in the end.

    ``port`` 0 is one that is free; ``flags`` are more of ``jrm serve``'s.

    Raises RuntimeError, with the last lines of ``log``, when it does not become ready.
    """
    if port == 0:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
    command = [sys.executable, "-c", "from jrm_client.cli import main; main()", "serve", "--port", str(port)]
    command += ["--checkpoint", str(checkpoint)] if checkpoint else []
    command += flags
    log.parent.mkdir(parents=True, exist_ok=True)
    url = f"http://127.0.0.1:{port}"
    with log.open("a") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        _wait_until_ready(url, process, log)
        yield url
    finally:
        process.terminate()
        process.wait()


def counters(url: str) -> dict[str, float]:
    """``name{label value}`` -> value, of the counters that say how much work was shared."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as reply:
        families = text_string_to_metric_families(reply.read().decode())
    return {
        " ".join((sample.name, *sample.labels.values())): sample.value
        for family in families
        for sample in family.samples
        if sample.name in _COUNTERS
    }


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with (
            contextlib.suppress(urllib.error.URLError, OSError),
            urllib.request.urlopen(f"{url}/health/ready", timeout=5),
        ):
            return
        time.sleep(0.2)
    raise RuntimeError("jrm serve did not become ready:\n" + "\n".join(log.read_text().splitlines()[-20:]))

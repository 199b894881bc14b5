"""A real Ray of this machine alone, with Ray Serve, and this process as a program that has joined it.

Ray is imported late, for that takes seconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from unittest import mock

from support import processes

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

# Few CPUs, for Ray starts a process for each; a replica of `Cluster.run` takes little of one. Ends when its input does.
_HEAD = """
import json, socket, sys, ray
from ray import serve
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
context = ray.init(address="local", num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False,
                   _temp_dir=sys.argv[1])
serve.start(http_options={"host": "127.0.0.1", "port": port})
print(json.dumps([context.address_info["address"], port]), flush=True)
sys.stdin.read()
ray.shutdown()
"""


@dataclass(frozen=True)
class Cluster:
    """``url`` is that of Ray's proxy, ``address`` what programs connect to, ``pid`` the process that has it all."""

    url: str
    address: str
    pid: int

    def run(self, app: str, route_prefix: str = "/", **options: Any) -> DeploymentHandle:
        """Deploy an application, or change it, and wait until its replicas are as they should be."""
        from ray import serve

        from jrm_service.ray import deployment

        return serve.run(deployment(num_cpus=0.1, **options), name=app, route_prefix=route_prefix)

    def handle(self, app: str) -> DeploymentHandle:
        """A handle to an application, as any program in the cluster gets one."""
        from ray import serve

        return serve.get_app_handle(app)

    def message(self, app: str) -> str:
        """What Ray says of the deployment of an application."""
        from ray import serve

        [status] = serve.status().applications[app].deployments.values()
        return status.message

    def replicas(self, app: str) -> list[int]:
        """Process ids of the replicas of an application."""
        return processes.children(self.pid, f"ray::ServeReplica:{app}:")

    def states(self, app: str) -> dict[str, int]:
        """How many replicas of an application there are in each state that Ray knows: STARTING, RUNNING, STOPPING, …"""
        from ray import serve

        [status] = serve.status().applications[app].deployments.values()
        return {str(getattr(state, "value", state)): count for state, count in status.replica_states.items() if count}


@contextlib.contextmanager
def running(**environment: str) -> Iterator[Cluster]:
    """Ray until the end of the block, with these variables in the environment of all its processes."""
    ours = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",  # on a machine that does other things too
        "RAY_worker_niceness": "0",  # Ray's own processes would have no time beside other tests
        **environment,
    }
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.dict(os.environ, ours))
        import ray
        from ray import serve

        # Not pytest's folder: a socket's path has 107 characters at most.
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True))
        head = stack.enter_context(
            subprocess.Popen([sys.executable, "-c", _HEAD, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        )
        address, port = json.loads(head.stdout.readline())
        ray.init(address=address, log_to_driver=False)
        try:
            yield Cluster(f"http://127.0.0.1:{port}", address, head.pid)
        finally:
            serve.shutdown()  # with the handles of this process, whose threads would ask for another Ray
            ray.shutdown()
            head.stdin.close()
            head.wait(60)


def until(condition: Callable[[], bool], seconds: float = 300) -> None:
    """Wait for what Ray brings about in its own time, and has no event for."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)

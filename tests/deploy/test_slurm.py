"""deploy/slurm against a real Slurm: a reward server beside a training, in one job."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from support import slurm

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(400)]

SCRIPT = Path(__file__).parents[2] / "deploy/slurm/with-reward-server.sh"
JRM = Path(sys.executable).with_name("jrm")

TRAINING = """
import os, signal, sys, time
import numpy as np
from jrm_client import JRMClient

steps, status = int(sys.argv[1]), int(sys.argv[2])
def save(*_):
    print("saved", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
if os.environ.get("SLURM_RESTART_COUNT"):
    steps = 1
url = open(os.environ["URL_FILE"]).read().strip()
print("training on", os.environ["SLURMD_NODENAME"], url == os.environ["JRM_URL"])
image = np.zeros((16, 16, 3), np.uint8)
with JRMClient(os.environ["JRM_URL"], timeout=60, max_retries=100) as client:
    for step in range(steps):
        print("reward", step, client.score(image, image, f"step {step}").reward, flush=True)
        time.sleep(0.5)
sys.exit(status)
"""


@pytest.fixture(scope="module")
def cluster():
    with slurm.running() as running:
        yield running


@pytest.fixture
def submit(cluster, tmp_path):
    """Submits the script with a training of so many steps, which ends with a status."""
    (tmp_path / "train.py").write_text(TRAINING)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    variables = {
        "REWARD_SERVER": f"{JRM} serve --backend fake",
        "REWARD_PORT": str(port),
        "REWARD_URL_FILE": str(tmp_path / "url"),
        "URL_FILE": str(tmp_path / "url"),
    }

    def submit(*flags, steps=3, status=0, **changed):
        training = [sys.executable, str(tmp_path / "train.py"), str(steps), str(status)]
        return cluster.submit(*flags, str(SCRIPT), *training, **variables | changed)

    submit.port = port
    submit.url_file = tmp_path / "url"
    return submit


def server_pids(port):
    listed = subprocess.run(["ps", "-ww", "-eo", "pid=,args="], capture_output=True, text=True, check=True).stdout
    lines = (line.split(None, 1) for line in listed.splitlines())
    return [int(pid) for pid, args in lines if f"--port {port}" in args and "python" in args.split()[0]]


def rewards(log):
    return {int(step) for step in re.findall(r"^reward (\d+)", log.read_text(), re.MULTILINE)}


def test_shellcheck_finds_nothing():
    done = subprocess.run(["shellcheck", str(SCRIPT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_of_several_nodes_the_last_has_the_server(submit):
    job = submit("--nodes=3", status=3)
    job.wait_until(["FAILED"])
    assert job.exit_code() == 3  # the training's own
    text = job.log.read_text()
    assert sorted(re.findall(r"training on (\w+) (\w+)", text)) == [("n1", "True"), ("n2", "True")]
    assert rewards(job.log) == {0, 1, 2}
    assert "the server has ended with status" not in text  # it was drained, and ended with 0
    assert not submit.url_file.exists()
    assert server_pids(submit.port) == []


def test_one_node_is_shared(submit):
    job = submit("--nodes=1")
    job.wait_until(["COMPLETED"])
    assert rewards(job.log) == {0, 1, 2}


def test_the_second_component_of_a_heterogeneous_job_has_the_server(submit):
    job = submit("--nodes=2", ":", "--nodes=1")
    job.wait_until(["COMPLETED"])
    assert sorted(re.findall(r"training on (\w+)", job.log.read_text())) == ["n1", "n2"]
    assert rewards(job.log) == {0, 1, 2}
    assert server_pids(submit.port) == []


def test_a_server_that_is_killed_is_started_again_and_the_training_goes_on(submit):
    job = submit("--nodes=2", steps=8)
    job.wait_for_line("^reward 1")
    for pid in server_pids(submit.port):
        os.kill(pid, signal.SIGKILL)
    job.wait_until(["COMPLETED"])
    assert "the server has ended with status" in job.log.read_text()
    assert rewards(job.log) == set(range(8))


def test_when_the_time_is_up_the_training_saves_and_the_job_is_queued_again(cluster, submit):
    job = submit("--nodes=2", steps=200)
    job.wait_for_line("^reward 1")
    cluster.run("scancel", "--batch", "--signal=USR1", job.id)  # as `#SBATCH --signal` does before the time is up
    job.wait_for_line("back into the queue")
    assert "saved" in job.log.read_text()
    job.wait_until(["PENDING"])
    cluster.run("scontrol", "update", f"JobId={job.id}", "StartTime=now")  # Slurm waits two minutes by itself
    job.wait_until(["COMPLETED"])
    assert job.log.read_text().count("training on") == 2
    assert server_pids(submit.port) == []


def test_a_server_that_does_not_start_ends_the_job(submit):
    job = submit("--nodes=2", REWARD_SERVER=f"{JRM} serve --checkpoint /nowhere", REWARD_START_TIMEOUT_S="6")
    job.wait_until(["FAILED"])
    assert job.exit_code() == 1
    assert "not ready after 6 s" in job.log.read_text()

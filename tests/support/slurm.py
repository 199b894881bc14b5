"""A Slurm cluster of three nodes on this machine: Debian's own daemons, on loopback, in a folder of their own."""

import getpass
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

ADVICE = "install Slurm on PATH (Debian: apt-get install --no-install-recommends slurmctld slurmd slurm-client munge)"
_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")

_CONF = """
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1
SelectType=select/cons_tres
ReturnToService=2
MailProg=/bin/true
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@dataclass(frozen=True)
class Cluster:
    """A running cluster. ``environment`` is what its commands need."""

    folder: Path
    environment: dict[str, str]

    def run(self, *command: str) -> str:
        """The output of one of Slurm's commands."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{command}: {done.stderr}{self.logs()}"
        return done.stdout.strip()

    def submit(self, *arguments: str, **environment: str) -> "Job":
        """Submit a batch job, with these variables in its environment."""
        log = self.folder / f"{len(list(self.folder.glob('job.*')))}.log"
        log = log.with_name(f"job.{log.name}")
        log.touch()
        command = ["sbatch", "--parsable", f"--output={log}", f"--chdir={self.folder}", *arguments]
        done = subprocess.run(
            command, env=self.environment | environment, capture_output=True, text=True, timeout=60, check=True
        )
        return Job(self, done.stdout.strip(), log)

    def logs(self) -> str:
        """What its daemons have to say."""
        return "".join(f"\n{file.name}\n{file.read_text()[-2000:]}" for file in sorted(self.folder.glob("slurm*.log")))


@dataclass(frozen=True)
class Job:
    """A job that was submitted."""

    cluster: Cluster
    id: str
    log: Path

    def state(self) -> str:
        """Such as RUNNING; empty once it is forgotten."""
        facts = self.facts()
        return facts[facts.index("JobState=") :].split()[0].removeprefix("JobState=")

    def facts(self) -> str:
        """What Slurm knows of it."""
        return self.cluster.run("scontrol", "show", "job", self.id)

    def exit_code(self) -> int:
        """The status that it ended with."""
        found = re.search(r" ExitCode=(\d+):", self.facts())
        assert found is not None
        return int(found[1])

    def wait_until(self, states: Sequence[str], seconds: float = 120) -> None:
        """Wait for one of the states."""
        self.wait_for(lambda: self.state() in states, seconds)

    def wait_for_line(self, pattern: str, seconds: float = 120) -> None:
        """Wait until its log has a line like this."""
        self.wait_for(lambda: re.search(pattern, self.log.read_text(), re.MULTILINE) is not None, seconds)

    def wait_for(self, condition, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, self.log.read_text() + self.facts() + self.cluster.logs()
            time.sleep(0.2)


@contextmanager
def running() -> Iterator[Cluster]:
    """A cluster of the nodes n1, n2 and n3. Raises FileNotFoundError, which says what to install."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    missing = [program for program in _PROGRAMS if shutil.which(program, path=path) is None]
    if missing:
        raise FileNotFoundError(f"{', '.join(missing)} not here: {ADVICE}")
    with tempfile.TemporaryDirectory(prefix="slurm-") as name:  # a socket's path must be short
        folder = Path(name)
        environment = {**os.environ, "PATH": path, "SLURM_CONF": str(folder / "slurm.conf")}
        nodes = "\n".join(
            f"NodeName=n{number} NodeHostname=localhost NodeAddr=127.0.0.1 Port={_free_port()} CPUs=2 State=UNKNOWN"
            for number in (1, 2, 3)
        )
        conf = _CONF.format(folder=folder, user=getpass.getuser(), port=_free_port(), nodes=nodes)
        (folder / "slurm.conf").write_text(conf)
        (folder / "state").mkdir()
        key = folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        munge = [f"--{what}={folder}/munge.{what.split('-')[0]}" for what in ("socket", "pid-file", "log-file")]
        daemons = [
            ["munged", "--foreground", "--force", f"--key-file={key}", f"--seed-file={folder}/munge.seed", *munge],
            ["slurmctld", "-D", "-c"],
            *(["slurmd", "-D", "-N", f"n{number}"] for number in (1, 2, 3)),
        ]
        cluster, processes = Cluster(folder, environment), []
        try:
            for daemon in daemons:
                if daemon[0] == "slurmd":
                    (folder / f"spool.{daemon[-1]}").mkdir()
                processes.append(
                    subprocess.Popen(daemon, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                )
                time.sleep(1 if daemon[0] != "slurmd" else 0)  # none waits for another
            deadline = time.monotonic() + 60
            while cluster.run("sinfo", "--noheader", "--format=%t %D") != "idle 3":
                assert time.monotonic() < deadline, cluster.logs()
                time.sleep(0.2)
            yield cluster
        finally:
            with suppress(Exception):
                cluster.run("scancel", "--state=RUNNING", "--full", "--signal=KILL", f"--user={getpass.getuser()}")
            for process in reversed(processes):
                process.send_signal(signal.SIGTERM)
                process.wait(30)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

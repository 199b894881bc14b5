"""The Dockerfile, without building it; `make image-test` builds it."""

import json
import re
import shlex
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

from deploy import dockerfile
from deploy.dockerfile import ROOT
from jrm_service.settings import Settings
from support.cases import each

FILE = dockerfile.read()
BIN = Path(sys.executable).parent
TARGETS = ["cpu", "gpu"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
every_target = each("target", TARGETS)


def environment(target: str) -> dict[str, str]:
    words = [word for line in FILE.stages[target].of("ENV") for word in shlex.split(line)]
    return dict(word.split("=", 1) for word in words)


def test_hadolint_finds_nothing():
    done = subprocess.run([BIN / "hadolint", ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_targets_differ_by_base_and_extras_alone():
    for suffix in ("", "-venv"):
        cpu, gpu = FILE.stages[f"cpu{suffix}"], FILE.stages[f"gpu{suffix}"]
        as_cpu = [line.replace("gpu", "cpu").replace("GPU", "CPU") for line in gpu.instructions]
        assert as_cpu == cpu.instructions
        assert (cpu.base, gpu.base) == ("cpu-base", "gpu-base")
    assert {FILE.stages[f"{target}-base"].base for target in TARGETS} == {"${CPU_BASE}", "${GPU_BASE}"}
    assert not FILE.stages["cpu-base"].instructions


def test_without_a_target_the_small_one_is_built():
    last = [*FILE.stages.values()][-1]
    assert (last.base, last.instructions) == ("cpu", [])


def test_bases_are_of_one_exact_version():
    cpu, gpu = FILE.arguments["CPU_BASE"], FILE.arguments["GPU_BASE"]
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", cpu)
    assert cpu.replace("slim-", "") == gpu


@every_target
def test_extras_are_those_of_the_project(target):
    extras = FILE.arguments[f"{target.upper()}_EXTRAS"].split(",")
    assert "service" in extras
    assert set(extras) <= PROJECT["optional-dependencies"].keys()


def test_the_small_image_has_no_vllm():
    assert not {"explain", "explain-cpu"} & set(FILE.arguments["CPU_EXTRAS"].split(","))


def test_the_version_is_that_of_the_project():
    assert FILE.arguments["VERSION"] == PROJECT["version"]


@every_target
def test_it_runs_as_a_numeric_user(target):
    stage = FILE.stages[target]
    assert stage.of("USER") == ["10001:10001"]
    as_user = stage.instructions[stage.instructions.index("USER 10001:10001") :]
    assert not [line for line in as_user if line.startswith(("RUN", "COPY", "ADD"))]


@every_target
def test_the_server_itself_gets_the_signal(target):
    stage = FILE.stages[target]
    assert stage.of("STOPSIGNAL") == ["SIGTERM"]
    assert [json.loads(line) for line in stage.of("ENTRYPOINT")] == [["jrm"]]
    assert [json.loads(line) for line in stage.of("CMD")] == [["serve", "--host", "0.0.0.0"]]


@every_target
def test_the_health_check_asks_the_port_that_is_exposed(target):
    assert FILE.stages[target].of("EXPOSE") == [str(Settings.model_fields["port"].default)]
    [check] = FILE.stages[target].of("HEALTHCHECK")
    command = json.loads(check.partition(" CMD ")[2])
    assert command == ["python3", "-I", "/opt/jrm/ready.py"]
    assert "deploy/image/ready.py /opt/jrm/" in FILE.stages[target].of("COPY")


@every_target
def test_caches_lie_where_the_user_may_write(target):
    caches = {name: value for name, value in environment(target).items() if "CACHE" in name or name == "HOME"}
    assert len(caches) >= 5
    assert all(value == "/cache" or value.startswith("/cache/") for value in caches.values())
    assert any("--owner=10001 --group=10001 --mode=1777 /cache" in line for line in FILE.stages[target].of("RUN"))


@every_target
def test_no_setting_of_the_server_is_fixed(target):
    assert not [name for name in environment(target) if name.startswith("JRM_")]


def test_every_pip_is_constrained_and_keeps_no_cache():
    commands = [line for stage in FILE.stages.values() for line in stage.of("RUN") if "pip " in line]
    commands.append((ROOT / "deploy/image/install.sh").read_text(encoding="utf-8").replace("\\\n", " "))
    assert len(commands) >= 3
    for command in commands:
        assert "--no-cache-dir" in command
        assert "--constraint" in command or "--requirement build.txt" in command or "--no-deps" in command


@each("name", ["build", "cpu", "gpu"])
def test_versions_are_exact(name):
    lines = (ROOT / "constraints" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert len(pins) > 5
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", pin) for pin in pins)


def let_in() -> list[str]:
    """What .dockerignore excepts from keeping everything out."""
    rules = [rule for rule in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if rule[:1] != "#"]
    assert rules[0] == "*"
    return [rule.removeprefix("!") for rule in rules if rule.startswith("!")]


def copied() -> set[str]:
    """Files and folders of this repository that the image gets."""
    lines = [line for stage in FILE.stages.values() for line in stage.of("COPY") if not line.startswith("--from=")]
    return {source for line in lines for source in line.split()[:-1]}


def test_all_that_is_copied_is_let_in():
    files = {source for source in copied() if (ROOT / source).is_file()}
    assert all(any(fnmatch(file, rule) for rule in let_in()) for file in files)
    folders = copied() - files
    assert folders == {rule.partition("/")[0] for rule in let_in() if (ROOT / rule).is_dir()}


def test_the_licences_are_copied():
    """A wheel whose licence files are missing is built without a word."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert set(project["project"]["license-files"]) <= copied()


def test_of_the_folders_only_the_packages_are_let_in():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert {rule for rule in let_in() if (ROOT / rule).is_dir()} == set(packages)

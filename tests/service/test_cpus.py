"""CPUs by affinity and by the quotas of both versions of cgroups, on folders laid out as the kernel does."""

import os

import pytest

from jrm_service.cpus import usable_cpus

V2, V1 = "0::{path}\n", "5:memory:/elsewhere\n4:cpu,cpuacct:{path}\n0::/\n"
GROUPS = {
    "no limit": (V2, "/", {"cpu.max": "max 100000"}, 64),
    "a container sees its group as the root": (V2, "/", {"cpu.max": "200000 100000"}, 2),
    "or under the path of the host": (V2, "/kubepods/pod1/c2", {"cpu.max": "200000 100000"}, 2),
    "the tightest of all levels": (
        V2,
        "/a/b",
        {"a/cpu.max": "300000 100000", "a/b/cpu.max": "800000 100000", "cpu.max": "max 100000"},
        3,
    ),
    "half a CPU is one": (V2, "/", {"cpu.max": "50000 100000"}, 1),
    "one and a half are two": (V2, "/", {"cpu.max": "150000 100000"}, 2),
    "more than there are": (V2, "/", {"cpu.max": "99900000 100000"}, 64),
    "no controller": (V2, "/", {}, 64),
    "not a number": (V2, "/", {"cpu.max": "many 0"}, 64),
    "version 1": (
        V1,
        "/docker/c1",
        {"cpu,cpuacct/docker/c1/cpu.cfs_quota_us": "400000", "cpu,cpuacct/docker/c1/cpu.cfs_period_us": "100000"},
        4,
    ),
    "version 1, in a container": (
        V1,
        "/docker/c1",
        {"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "25000"},
        2,
    ),
    "version 1 without a limit": (V1, "/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 64),
}


@pytest.mark.parametrize("case", GROUPS)
def test_the_quota_of_a_cgroup(case, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64))
    line, path, files, expected = GROUPS[case]
    groups = {f"sys/fs/cgroup/{name}": content for name, content in files.items()}
    for name, content in (groups | {"proc/self/cgroup": line.format(path=path)}).items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content + "\n")
    assert usable_cpus(tmp_path) == expected


def test_affinity_without_cgroups(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 7})
    assert usable_cpus(tmp_path) == 3


def test_a_system_without_affinity(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cpus(tmp_path) == 1

"""Memory that is left, from files as the kernel writes them."""

from pathlib import Path

from jrm_service.host_memory import available_memory

MiB = 2**20
UNLIMITED_1 = str(2**63 - 4096)  # what version 1 says without a limit


def limited_1(limit: int | str, used: int, cache: int = 0) -> dict[str, str]:
    return {
        "memory.limit_in_bytes": str(limit),
        "memory.usage_in_bytes": str(used * MiB),
        "memory.stat": f"cache 5\ninactive_file 7\ntotal_inactive_file {cache * MiB}\n",
    }


def limited_2(limit: int | str, used: int, cache: int = 0) -> dict[str, str]:
    return {
        "memory.max": f"{limit}\n",
        "memory.current": f"{used * MiB}\n",
        "memory.stat": f"anon 5\ninactive_file {cache * MiB}\nactive_file 9\n",
    }


def machine(root: Path, cgroup: str, folders: dict[str, dict[str, str]], available: int = 1000) -> Path:
    """A root folder; ``available`` in MiB."""
    files = {"proc/self/cgroup": cgroup, "proc/meminfo": f"MemTotal: 9 kB\nMemAvailable:  {available * 1024} kB\n"}
    for folder, contents in folders.items():
        files |= {f"sys/fs/cgroup/{folder}/{name}": text for name, text in contents.items()}
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_what_is_left_is_the_least_of_the_machine_and_of_every_limit_above_the_process(tmp_path):
    cases = {
        "no cgroup": ("", {}, 1000),
        "version 2, at the root of its namespace": ("0::/\n", {".": limited_2(300 * MiB, 100)}, 200),
        "version 2, no limit": ("0::/a\n", {"a": limited_2("max", 100)}, 1000),
        "version 2, cache is free": ("0::/a\n", {"a": limited_2(300 * MiB, 250, cache=200)}, 250),
        "version 2, more than the machine has": ("0::/a\n", {"a": limited_2(5000 * MiB, 0)}, 1000),
        "version 2, the outer limit is tighter": (
            "0::/pod/app\n",
            {"pod": limited_2(300 * MiB, 200), "pod/app": limited_2(800 * MiB, 100)},
            100,
        ),
        "version 2, the inner limit is tighter": (
            "0::/pod/app\n",
            {"pod": limited_2(900 * MiB, 200), "pod/app": limited_2(300 * MiB, 50)},
            250,
        ),
        "version 2, only the middle has a limit": (
            "0::/pod/app/worker\n",
            {"pod/app": limited_2(300 * MiB, 50), "pod/app/worker": limited_2("max", 5)},
            250,
        ),
        "version 2, a path outside of its namespace": ("0::/../other\n", {".": limited_2(300 * MiB, 100)}, 200),
        "version 1": ("5:cpu,cpuacct:/x\n4:memory:/a\n", {"memory/a": limited_1(300 * MiB, 100)}, 200),
        "version 1, no limit": ("4:memory:/a\n", {"memory/a": limited_1(UNLIMITED_1, 100)}, 1000),
        "version 1, cache is free": ("4:memory:/a\n", {"memory/a": limited_1(300 * MiB, 290, cache=90)}, 100),
        "version 1, the path is the host's": ("4:memory:/docker/1\n", {"memory": limited_1(300 * MiB, 100)}, 200),
        "version 1, the outer limit is tighter": (
            "4:memory:/a/b\n",
            {"memory/a": limited_1(300 * MiB, 200), "memory/a/b": limited_1(UNLIMITED_1, 10)},
            100,
        ),
        "both versions": (
            "4:memory:/a\n1:name=systemd:/a\n0::/a\n",
            {"memory/a": limited_1(300 * MiB, 100), "unified/a": {}},
            200,
        ),
        "over the limit": ("0::/a\n", {"a": limited_2(100 * MiB, 150)}, 0),
    }
    for number, (name, (cgroup, folders, left)) in enumerate(cases.items()):
        assert available_memory(machine(tmp_path / str(number), cgroup, folders)) == left * MiB, name


def test_a_system_without_proc_says_nothing(tmp_path):
    assert available_memory(tmp_path) is None


def test_this_machine_has_some():
    left = available_memory()
    assert left is None or left > 0

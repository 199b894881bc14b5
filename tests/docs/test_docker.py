"""docs/docker.md against the Dockerfile, the compose file and the Makefile."""

import itertools
import re
import shlex

import yaml

from deploy import dockerfile
from docs import pages

PAGE = pages.DOCS / "docker.md"
FILE = dockerfile.read()
COMPOSE_TEXT = (pages.ROOT / "docker-compose.yml").read_text(encoding="utf-8")
SERVICES = yaml.safe_load(COMPOSE_TEXT)["services"]
ARGUMENTS = FILE.arguments.keys() | {name for stage in FILE.stages.values() for name in stage.of("ARG")}


def commands(*beginning: str) -> list[list[str]]:
    """The commands of the page, as words, that begin so; variables in front of them left out."""
    lines = [line for block in pages.blocks(PAGE, "bash") for line in block.splitlines() if line]
    words = [list(itertools.dropwhile(re.compile(r"[A-Z_]+=").match, shlex.split(line))) for line in lines]
    return [command for command in words if command[: len(beginning)] == [*beginning]]


def test_every_command_is_of_a_tool_that_other_tests_know():
    assert {command[0] for command in commands()} == {"docker", "make"}
    known = {"build", "buildx", "compose", "run"}
    assert {command[1] for command in commands("docker")} == known


def test_the_targets_of_make_exist():
    makefile = (pages.ROOT / "Makefile").read_text(encoding="utf-8")
    for command in commands("make"):
        assert re.search(rf"^{command[1]}:", makefile, re.MULTILINE)


def test_builds_name_targets_and_arguments_that_exist():
    assert len(commands("docker", "build")) >= 5
    for command in commands("docker", "build"):
        assert command[command.index("--target") + 1] in FILE.stages
        given = [after.partition("=")[0] for word, after in itertools.pairwise(command) if word == "--build-arg"]
        assert set(given) <= ARGUMENTS


def test_every_build_argument_has_its_row_and_default():
    rows = {name: default for name, default, _ in pages.table(PAGE, "build argument")}
    documented = dict(
        pair
        for names, defaults in rows.items()
        for pair in zip(names.split(", "), defaults.split(", ") * 2, strict=False)
    )
    assert documented.keys() == ARGUMENTS
    literal = {name: value for name, value in FILE.arguments.items() if not name.endswith("_EXTRAS")}
    assert {name: documented[name] for name in literal} == literal


def test_every_image_has_its_row_with_its_extras():
    rows = [(image, target, extras.replace(" ", "")) for image, target, extras, _ in pages.table(PAGE, "image")]
    assert rows == [
        (f"jrm-serve:{FILE.arguments['VERSION']}-{target}", target, FILE.arguments[f"{target.upper()}_EXTRAS"])
        for target in ("cpu", "gpu")
    ]


def test_every_image_that_is_run_is_one_of_them():
    text = PAGE.read_text(encoding="utf-8")
    images = {image for image, *_ in pages.table(PAGE, "image")}
    assert set(re.findall(r"jrm-serve:[\w.-]+", text)) == images


def test_every_service_that_up_starts_has_its_row_and_address():
    rows = {name: address for name, address, _ in pages.table(PAGE, "service")}
    assert rows.keys() == {name for name, service in SERVICES.items() if "profiles" not in service}
    for name, address in rows.items():
        ports = [re.search(r":-(\d+)\}:", port)[1] for port in SERVICES[name].get("ports", [])]
        assert re.findall(r"127\.0\.0\.1:(\d+)", address) == ports


def test_compose_commands_name_services_profiles_and_variables_that_exist():
    known = SERVICES.keys() | {profile for service in SERVICES.values() for profile in service.get("profiles", [])}
    for command in commands("docker", "compose"):
        options = command[2:]
        named = [word.partition("=")[0] for word in options if not word.startswith("--")]
        assert set(named) <= known | {"up", "build"}
    variables = set(
        re.findall(r"`([A-Z]+_PORT|CHECKPOINT|SERVE|PAGE|KEEP_RECENT)[`=]", PAGE.read_text(encoding="utf-8"))
    )
    assert variables == set(re.findall(r"\$\{([A-Z_]+)", COMPOSE_TEXT))


def test_what_containers_mount_is_what_the_image_needs():
    rows = {mount for mount, *_ in pages.table(PAGE, "mount")}
    assert rows == {"/tmp", "/cache", "/dev/shm", "/checkpoint"}
    for command in commands("docker", "run"):
        if "--read-only" in command:
            mounted = {
                word.partition(":")[2].partition(":")[0] or word
                for word in command
                if word.startswith(("/", "jrm-cache:"))
            }
            assert {"/tmp", "/cache"} <= mounted

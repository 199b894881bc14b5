"""docs/kubernetes.md against the chart: its values and commands render, its names are those of the objects."""

import itertools
import re
import shlex

import helm_python
import pytest
import yaml

from docs import pages
from helm.chart import all_of, refusal, render

PAGE = pages.DOCS / "kubernetes.md"
TEXT = PAGE.read_text(encoding="utf-8")
VALUES = [yaml.safe_load(block) for block in pages.blocks(PAGE, "yaml")]
COMMANDS = [line for block in pages.blocks(PAGE, "") for line in block.splitlines() if line.startswith("helm ")]


def merged(base: dict, more: dict) -> dict:
    """As Helm merges values: maps key by key, everything else as it comes last."""
    both = {name: merged(base[name], more[name]) for name in base if isinstance(base[name], dict) and name in more}
    return base | more | both


def values_of(command: str) -> tuple[str, dict]:
    """The release that a command makes or changes, and the values that it gives."""
    words = shlex.split(command)
    release = next(word for word in words[1:] if not word.startswith("-") and word not in ("install", "upgrade"))
    values: dict = {}
    for flag, value in itertools.pairwise(words):
        if (flag, value) == ("--values", "rewards.yaml"):
            values = merged(values, VALUES[0])
        if flag == "--set":
            values = merged(values, helm_python.parse_set_string(value))
    return release, values


@pytest.mark.parametrize("values", VALUES, ids=lambda values: ",".join(values))
def test_values_render(values):
    assert render(merged(VALUES[0], values))


@pytest.mark.parametrize("command", [line for line in COMMANDS if " helm/jrm " in line])
def test_commands_render(command):
    release, values = values_of(command)
    assert all_of(render(values, name=release), "Deployment")


def test_names_are_those_of_the_objects():
    """Every host and Service that the page names is one that its values make."""
    names = {
        one["metadata"]["name"]
        for command in COMMANDS
        if " helm/jrm " in command
        for release, values in [values_of(command)]
        for one in all_of(render(merged(values, {"explain": {"enabled": True}}), name=release), "Service")
    }
    named = set(re.findall(r"http://([\w-]+)\.rewards:", TEXT)) | set(re.findall(r"service/([\w-]+)", TEXT))
    assert named
    assert named <= names


def test_paths_of_values_exist():
    """What is written like a value of the chart is one."""
    values = yaml.safe_load((pages.ROOT / "helm" / "jrm" / "values.yaml").read_text(encoding="utf-8"))
    settings = {"settings.max_queue", "settings.max_bodies_bytes"}
    inline = set(re.findall(rf"`((?:{'|'.join(values)})(?:\.\w+)+)", TEXT)) - settings
    assert len(inline) > 20
    for path in inline:
        node = values
        for step in path.split("."):
            assert step in node, path
            node = node[step]


def test_two_sources_of_a_checkpoint_are_refused_as_the_page_says():
    assert "choose one" in refusal({"checkpoint": {"source": "pvc", "pvc": {"claimName": "a"}, "hub": {"repo": "b/c"}}})

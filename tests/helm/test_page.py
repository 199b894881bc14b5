"""docs/kubernetes.md against the chart: its values and commands render, its names are those of the objects."""

import itertools
import re
import shlex

import helm_python
import yaml

from docs import pages
from helm.chart import all_of, chart_values, every_case, refusal, render, variables
from jrm_service.settings import Settings
from support.cases import each

PAGE = pages.DOCS / "kubernetes.md"
TEXT = PAGE.read_text(encoding="utf-8")
VALUES = [yaml.safe_load(block) for block in pages.blocks(PAGE, "yaml")]
# Those that the page gives a name, and that its commands ask for.
FILES = {
    name: yaml.safe_load(block)
    for block in pages.blocks(PAGE, "yaml")
    for name in re.findall(r"\A# (\S+\.yaml)$", block, re.MULTILINE)
}
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
        if flag == "--values":
            values = merged(values, FILES[value])
        if flag == "--set":
            values = merged(values, helm_python.parse_set_string(value))
    return release, values


@each("values", VALUES, ids=lambda values: ",".join(values))
def test_values_render(values):
    assert render(merged(VALUES[0], values))


def test_every_command_says_where():
    lines = [line for block in pages.blocks(PAGE, "") for line in block.splitlines()]
    lines += re.findall(r"`(helm \w+ rewards[^`]*)`", TEXT)
    cluster = [line for line in lines if line.startswith(("helm ", "kubectl "))]
    assert len(cluster) > 10
    for line in cluster:
        assert line.startswith("helm repo") or re.search(r"--namespace (rewards|monitoring)\b", line), line


def hosts(objects):
    """Every name that is answered to from outside the cluster."""
    rules = [rule["host"] for one in all_of(objects, "Ingress") for rule in one["spec"]["rules"]]
    return rules + [name for one in all_of(objects, "HTTPRoute") for name in one["spec"].get("hostnames", ["*"])]


@every_case
def test_a_canary_is_one_pod_whatever_the_release_beside_it_has(case):
    objects = render(merged(merged(case, FILES["canary.yaml"]), {"score": {"enabled": True}}), name="canary")
    kinds = {one["kind"] for one in objects}
    assert kinds.isdisjoint({"Ingress", "HTTPRoute", "HorizontalPodAutoscaler", "ScaledObject", "PrometheusRule"})
    deployments = [one for one in all_of(objects, "Deployment") if one["metadata"]["name"] != "canary-jrm-redis"]
    assert [one["spec"]["replicas"] for one in deployments] == [1]
    assert not [one for one in objects if one["metadata"]["name"].endswith("-dashboard")]


def test_a_canary_computes_its_scores_itself():
    """Scores in a shared Redis are found by fingerprint, and the canary has that of the old release."""
    canary = merged(chart_values("external-redis"), FILES["canary.yaml"])
    assert variables(canary)["JRM_REDIS_PREFIX"] not in ("", Settings.model_fields["redis_prefix"].default)


def test_a_release_for_a_new_checkpoint_has_all_but_the_hosts_and_the_dashboard():
    old, new = chart_values("everything"), merged(chart_values("everything"), FILES["v4.yaml"])
    first, second = render(old, name="rewards"), render(new, name="rewards-v4")
    assert hosts(second)
    assert not set(hosts(first)) & set(hosts(second))
    ours = {(one["kind"], one["metadata"]["name"].replace("rewards-", "rewards-v4-")) for one in first}
    assert ours - {(one["kind"], one["metadata"]["name"]) for one in second} == {
        ("ConfigMap", "rewards-v4-jrm-dashboard")
    }


@each("command", [line for line in COMMANDS if " helm/jrm " in line])
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
    settings = {"settings.max_queue", "settings.max_candidates", "settings.max_bodies_bytes"}
    inline = set(re.findall(rf"`((?:{'|'.join(values)})(?:\.\w+)+)", TEXT)) - settings
    assert len(inline) > 20
    for path in inline:
        node = values
        for step in path.split("."):
            assert step in node, path
            node = node[step]


def test_two_sources_of_a_checkpoint_are_refused_as_the_page_says():
    assert "choose one" in refusal({"checkpoint": {"source": "pvc", "pvc": {"claimName": "a"}, "hub": {"repo": "b/c"}}})

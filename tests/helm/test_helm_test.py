"""`helm test`: a pod that ends well if, and only if, real images get finite rewards."""

import base64
import json
import math
from pathlib import Path

from typer.main import get_command
from typer.testing import CliRunner

from helm.chart import CHART, chart_values, one_of, pod, render
from jrm_client.cli import app
from jrm_service.scoring.fakes import FakeBackend, NaNBackend
from support import servers
from support.cases import each

SCENE = CHART / "files" / "scene"
EXAMPLES = CHART.parents[1] / "examples" / "scene"


def helm_test(values):
    test = one_of(render(values), "Pod")
    assert test["metadata"]["annotations"]["helm.sh/hook"] == "test"
    assert test["spec"]["restartPolicy"] == "Never"
    (container,) = test["spec"]["containers"]
    return container


@each(("values", "role"), [({}, "score"), (chart_values("explain-only"), "explain")])
def test_helm_test_is_a_command_that_the_client_has(values, role):
    name, *arguments = helm_test(values)["args"]
    assert name == role
    command = get_command(app)
    with command.make_context("jrm", [name, *arguments]) as context:
        _, parsed, rest = command.resolve_command(context, [name, *arguments])
        options = parsed.make_context(name, list(rest)).params
    assert options["instruction"] == "make the red square blue"
    assert options["url"] == [f"http://rl-jrm-{role}:8000"]
    assert options["as_json"] is True


def run(url):
    """What its command does, with the chart's own images, against a server that is here."""
    there = "http://rl-jrm-score:8000"
    arguments = [one.replace("/images/", f"{SCENE}/").replace(there, url) for one in helm_test({})["args"]]
    return CliRunner().invoke(app, arguments)


def test_a_server_that_scores_passes():
    with servers.serving() as url:
        done = run(url)
    assert done.exit_code == 0, done.output
    rewards = [one["reward"] for one in json.loads(done.output)["scores"]]
    assert len(rewards) == 2
    assert all(math.isfinite(reward) for reward in rewards)


def test_a_server_whose_scores_are_no_numbers_fails():
    broken = NaNBackend(FakeBackend(), when=lambda candidate: True)
    with servers.serving(load=lambda: servers.fake_parts(broken)) as url:
        assert run(url).exit_code == 1


def test_its_images_are_those_of_the_example():
    mounted = {Path(one).name for one in helm_test({})["args"] if one.endswith(".png")}
    assert mounted == {path.name for path in SCENE.glob("*.png")}
    for name, data in one_of(render(), "ConfigMap", "rl-jrm-test")["binaryData"].items():
        assert base64.b64decode(data) == (EXAMPLES / name).read_bytes()


def test_its_images_are_there_before_it_starts():
    annotations = one_of(render(), "ConfigMap", "rl-jrm-test")["metadata"]["annotations"]
    assert annotations["helm.sh/hook"] == "test"
    assert int(annotations["helm.sh/hook-weight"]) < 0


@each("role", ["score", "explain"])
def test_it_runs_wherever_the_pods_may(role):
    tolerations = [{"key": "team", "operator": "Exists"}]
    values = {"score": {"enabled": False}, "explain": {"enabled": True}}
    values[role] = {"enabled": True, "gpus": 1, "tolerations": tolerations, "nodeSelector": {"pool": "gpu"}}
    test, server = one_of(render(values), "Pod")["spec"], pod(values, role)
    assert len(server["tolerations"]) == 2
    assert (test["nodeSelector"], test["tolerations"]) == (server["nodeSelector"], server["tolerations"])


def test_with_keys_it_has_one_or_there_is_no_test():
    keys = {"apiKeys": {"existingSecret": "jrm-keys"}}
    assert [one["metadata"]["name"] for one in render(keys) if one["metadata"]["name"].endswith("-test")] == []
    (variable,) = helm_test(keys | {"test": {"apiKeySecret": {"name": "one-key"}}})["env"]
    assert variable["name"] == "JRM_API_KEY"
    assert variable["valueFrom"] == {"secretKeyRef": {"name": "one-key", "key": "api-key"}}

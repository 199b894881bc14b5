"""The chart as the tests see it: rendered by Helm itself, as a list of objects."""

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import helm_python
import yaml

from support.cases import each

CHART = Path(__file__).parents[2] / "helm" / "jrm"
MATRIX = sorted((Path(__file__).parent / "values").glob("*.yaml"))
COMPONENT = "app.kubernetes.io/component"
Object = dict[str, Any]


def matrix_values(path: Path) -> Object:
    return yaml.safe_load(path.read_text(encoding="utf-8")) or {}


# Tries a test with the values of each file of the matrix, as ``case``.
every_case = each("case", map(matrix_values, MATRIX), ids=[path.stem for path in MATRIX])


def chart_values(name: str) -> Object:
    """The values file of that name."""
    return matrix_values(Path(__file__).parent / "values" / f"{name}.yaml")


def render(
    values: Object | None = None, *, name: str = "rl", namespace: str = "rewards", chart: Path = CHART
) -> list[Object]:
    """Every object of a release, hooks included."""
    return json.loads(_rendered(json.dumps(values or {}), name, namespace, chart)[0])


def notes(values: Object | None = None, *, name: str = "rl", namespace: str = "rewards") -> str:
    return _rendered(json.dumps(values or {}), name, namespace, CHART)[1]


@cache
def _rendered(values: str, name: str, namespace: str, chart: Path) -> tuple[str, str]:
    """The objects of a release, as JSON, from which every test makes its own, and the notes."""
    with helm_python.Chart.load(chart) as loaded:
        texts = loaded.render(json.loads(values), name=name, namespace=namespace)
    objects = [
        document
        for path, text in texts.items()
        if not path.endswith("NOTES.txt")
        for document in yaml.load_all(text, yaml.CSafeLoader)
        if document
    ]
    return json.dumps(objects), texts.get("jrm/templates/NOTES.txt", "")


def chart_with(folder: Path, file: str, old: str, new: str) -> Path:
    """A copy of the chart with one piece of a template replaced: what Helm would have asked a cluster for."""
    copy = Path(shutil.copytree(CHART, folder / "jrm"))
    text = (copy / file).read_text(encoding="utf-8")
    assert text.count(old) == 1
    (copy / file).write_text(text.replace(old, new), encoding="utf-8")
    return copy


def refusal(values: Object) -> str:
    """What Helm says of values that are refused. Fails if they are not."""
    try:
        render(values)
    except helm_python.HelmError as error:
        return str(error)
    raise AssertionError("these values were not refused")


def all_of(objects: list[Object], kind: str) -> list[Object]:
    return [one for one in objects if one["kind"] == kind]


def one_of(objects: list[Object], kind: str, name: str | None = None) -> Object:
    """The one object of a kind, or of a kind and name."""
    found = [one for one in all_of(objects, kind) if name in (None, one["metadata"]["name"])]
    assert len(found) == 1, f"{len(found)} of {kind} {name or ''}: {[one['metadata']['name'] for one in found]}"
    return found[0]


def pods(objects: list[Object]) -> list[tuple[str, Object]]:
    """Every pod or pod template, as (name of its object, {metadata, spec})."""
    templates = [(one["metadata"]["name"], one["spec"]["template"]) for one in all_of(objects, "Deployment")]
    return templates + [(one["metadata"]["name"], one) for one in all_of(objects, "Pod")]


def of_role(objects: list[Object], kind: str, role: str) -> Object:
    """The one object of a kind that belongs to a role."""
    return one_of([one for one in objects if one["metadata"]["labels"].get(COMPONENT) == role], kind)


def pod(values: Object | None = None, role: str = "score") -> Object:
    """The spec of a role's pods."""
    return of_role(render(values), "Deployment", role)["spec"]["template"]["spec"]


def server(values: Object | None = None, role: str = "score") -> Object:
    """The container of the server."""
    (container,) = pod(values, role)["containers"]
    return container


def variables(values: Object | None = None, role: str = "score") -> dict[str, str]:
    """The server's variables as the kubelet would make them, with stand-ins for what it takes from elsewhere."""
    environment = dict(of_role(render(values), "ConfigMap", role)["data"])
    for variable in server(values, role).get("env", ()):
        value = variable.get("value") or _stand_in(variable)
        for name, known in environment.items():
            value = value.replace(f"$({name})", known)
        environment[variable["name"]] = value
    return environment


def _stand_in(variable: Object) -> str:
    if "resourceFieldRef" in variable["valueFrom"]:
        return "4"
    return "redis://from-a-secret:6379/0" if variable["name"] == "JRM_REDIS_URL" else "from-a-secret"


def matches(selector: dict[str, str], labels: dict[str, str]) -> bool:
    return selector.items() <= labels.items()

"""Score and explain apart: their Services, their routes, and how callers find them."""

from helm.chart import all_of, every_case, matches, of_role, one_of, pods, render
from support.cases import each

BOTH = {"explain": {"enabled": True}}
INGRESS = {"ingress": {"enabled": True, "hosts": ["jrm.example.com"]}}
GATEWAY = {"gateway": {"enabled": True, "parentRefs": [{"name": "public"}]}}
ROUTES = {
    "/score": "rl-jrm-score",
    "/v1/score": "rl-jrm-score",
    "/explain": "rl-jrm-explain",
    "/v1/explain": "rl-jrm-explain",
    "/v1/info": "rl-jrm-score",
    "/v1/models": "rl-jrm-score",
}


def ingress_routes(values):
    (rule,) = one_of(render(values), "Ingress")["spec"]["rules"]
    return {one["path"]: one["backend"]["service"]["name"] for one in rule["http"]["paths"]}


def gateway_routes(values):
    rules = one_of(render(values), "HTTPRoute")["spec"]["rules"]
    return {match["path"]["value"]: rule["backendRefs"][0]["name"] for rule in rules for match in rule["matches"]}


@each(
    ("values", "names"),
    [
        ({}, ["rl-jrm-score"]),
        (BOTH, ["rl-jrm-score", "rl-jrm-explain"]),
        (BOTH | {"score": {"enabled": False}}, ["rl-jrm-explain"]),
    ],
)
def test_each_role_is_a_deployment_of_its_own(values, names):
    assert [one["metadata"]["name"] for one in all_of(render(values), "Deployment")] == names


@every_case
def test_every_service_leads_to_a_port_of_the_pods_of_one_role(case):
    objects = render(case)
    for service in all_of(objects, "Service"):
        selector = service["spec"]["selector"]
        (found,) = [pod["spec"] for _, pod in pods(objects) if matches(selector, pod["metadata"]["labels"])]
        named = {port["name"] for container in found["containers"] for port in container["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= named


def test_a_headless_service_names_the_pods_that_are_ready():
    service = one_of(render(), "Service", "rl-jrm-score-headless")["spec"]
    assert service["clusterIP"] == "None"
    assert service["publishNotReadyAddresses"] is False


def test_a_headless_service_translates_no_port():
    service = one_of(render({"service": {"port": 80}}), "Service", "rl-jrm-score-headless")["spec"]
    assert service["ports"][0]["port"] == 8000


@each(("routes", "values"), [(ingress_routes, INGRESS), (gateway_routes, GATEWAY)])
def test_from_outside_each_path_leads_to_its_role_and_no_other_path_anywhere(routes, values):
    assert routes(values | BOTH) == ROUTES


@each(("routes", "values"), [(ingress_routes, INGRESS), (gateway_routes, GATEWAY)])
def test_without_explain_nothing_leads_to_it(routes, values):
    assert set(routes(values)) == set(ROUTES) - {"/explain", "/v1/explain"}


@each(("routes", "values"), [(ingress_routes, INGRESS), (gateway_routes, GATEWAY)])
def test_the_page_is_let_out_where_one_says_so(routes, values):
    (kind,) = values
    shown = {kind: values[kind] | {"page": True}}
    page = {"/": "rl-jrm-score", "/page": "rl-jrm-score", "/v1/watch": "rl-jrm-score"}
    assert routes(shown | BOTH) == ROUTES | page
    critiques = routes(shown | BOTH | {"score": {"enabled": False}})
    assert critiques.keys() & page.keys() == {"/", "/page"}


def test_what_is_below_the_page_is_let_out_and_nothing_else_is_below_anything():
    (rule,) = one_of(render({"ingress": INGRESS["ingress"] | {"page": True}}), "Ingress")["spec"]["rules"]
    kinds = {one["path"]: one["pathType"] for one in rule["http"]["paths"]}
    assert {path for path, kind in kinds.items() if kind == "Prefix"} == {"/page", "/v1/watch"}
    rules = one_of(render({"gateway": GATEWAY["gateway"] | {"page": True}}), "HTTPRoute")["spec"]["rules"]
    matches = [match["path"] for rule in rules for match in rule["matches"]]
    assert {one["value"] for one in matches if one["type"] == "PathPrefix"} == {"/page", "/v1/watch"}
    assert {one["type"] for one in matches} == {"PathPrefix", "Exact"}


@every_case
def test_a_backend_is_a_port_of_its_service(case):
    objects = render(case)
    for one in all_of(objects, "Ingress"):
        for path in [path for rule in one["spec"]["rules"] for path in rule["http"]["paths"]]:
            service = one_of(objects, "Service", path["backend"]["service"]["name"])
            assert path["backend"]["service"]["port"]["name"] in {port["name"] for port in service["spec"]["ports"]}
    for one in all_of(objects, "HTTPRoute"):
        for reference in [reference for rule in one["spec"]["rules"] for reference in rule["backendRefs"]]:
            service = one_of(objects, "Service", reference["name"])
            assert reference["port"] in {port["port"] for port in service["spec"]["ports"]}


def test_a_route_waits_as_long_as_a_caller_may():
    route = one_of(render(GATEWAY), "HTTPRoute")
    assert route["apiVersion"] == "gateway.networking.k8s.io/v1"
    assert [rule["timeouts"] for rule in route["spec"]["rules"]] == [{"request": "600s"}]


def test_critiques_alone_have_a_gpu_to_themselves():
    data = of_role(render(BOTH), "ConfigMap", "explain")["data"]
    assert (data["JRM_SERVE"], data["JRM_DEVICE"], data["JRM_EXPLAIN_GPU_SHARE"]) == ("explain", "cuda:0", "0.9")

"""What a NetworkPolicy lets through is what the pods use, and nothing else."""

from helm.chart import all_of, chart_values, matches, of_role, one_of, render
from support.cases import each

ON = {"networkPolicy": {"enabled": True}}
DNS = [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]


def policy(values):
    return of_role(render(values), "NetworkPolicy", "score")["spec"]


def ports(values):
    """The ports that pods may reach beside names."""
    rules = policy(values)["egress"]
    assert rules[0]["ports"] == DNS
    return [port["port"] for rule in rules[1:] for port in rule.get("ports", [])]


def test_by_default_there_is_none():
    assert not all_of(render(), "NetworkPolicy")


def test_it_holds_for_the_pods_of_its_role():
    objects = render(ON)
    labels = of_role(objects, "Deployment", "score")["spec"]["template"]["metadata"]["labels"]
    assert matches(policy(ON)["podSelector"]["matchLabels"], labels)
    assert policy(ON)["policyTypes"] == ["Ingress", "Egress"]


def test_callers_come_from_this_namespace_and_metrics_go_to_monitoring():
    (rule,) = policy(ON)["ingress"]
    assert rule["ports"] == [{"port": "http", "protocol": "TCP"}]
    assert rule["from"][1:] == [
        {"podSelector": {}},
        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}},
    ]


def test_helm_test_gets_through_even_where_nobody_else_does():
    values = {"networkPolicy": {"enabled": True, "allowSameNamespace": False, "metricsFrom": []}}
    (rule,) = policy(values)["ingress"]
    (peer,) = rule["from"]
    assert matches(peer["podSelector"]["matchLabels"], one_of(render(values), "Pod")["metadata"]["labels"])


@each(
    ("values", "reached"),
    [
        ({}, []),
        ({"redis": {"mode": "internal"}}, [6379]),
        ({"redis": {"mode": "external", "external": {"url": "redis://cache.example.com"}}}, [6379]),
        ({"redis": {"mode": "external", "external": {"url": "redis://cache.example.com:6390/2"}}}, [6390]),
        ({"redis": {"mode": "external", "external": {"existingSecret": "shared", "port": 6380}}}, [6380]),
        ({"checkpoint": {"source": "hub", "hub": {"repo": "my-team/my-jrm"}}}, [443]),
        ({"settings": {"otlp_endpoint": "http://collector:4318"}}, [4318]),
        ({"settings": {"otlp_endpoint": "http://collector/v1"}}, [80]),
        ({"score": {"settings": {"otlp_endpoint": "https://collector"}}}, [443]),
    ],
)
def test_pods_reach_what_they_use(values, reached):
    assert ports(values | ON) == reached


def test_the_internal_redis_is_reached_and_lets_in():
    objects = render({"redis": {"mode": "internal"}} | ON)
    out = policy({"redis": {"mode": "internal"}} | ON)["egress"][1]["to"][0]["podSelector"]["matchLabels"]
    inside = one_of(objects, "NetworkPolicy", "rl-jrm-redis")["spec"]["podSelector"]["matchLabels"]
    labels = of_role(objects, "Deployment", "redis")["spec"]["template"]["metadata"]["labels"]
    assert matches(out, labels)
    assert matches(inside, labels)


def test_more_can_be_let_through():
    values = chart_values("everything")
    assert values["networkPolicy"]["from"][0] in policy(values)["ingress"][0]["from"]
    assert policy(values)["egress"][-1] == values["networkPolicy"]["egress"][0]

import asyncio

import pytest

from jrm_client import addresses
from jrm_client.addresses import Target, is_name, targets

URL = "https://fleet.test:8443/jrm"


def test_each_of_several_addresses_is_a_target() -> None:
    found = targets(URL, ["10.0.0.2", "10.0.0.1", "10.0.0.2", "fd00::1"])
    assert found == [Target(URL, "10.0.0.1"), Target(URL, "10.0.0.2"), Target(URL, "fd00::1")]


@pytest.mark.parametrize(
    "found", [[], ["10.0.0.1"], ["10.0.0.1", "10.0.0.1"], ["10.0.0.1", "fd00::1"], ["10.0.0.1", "fe80::1%2", "fd00::1"]]
)
def test_a_name_without_a_choice_stays_a_name(found: list[str]) -> None:
    assert targets(URL, found) == [Target(URL)]


@pytest.mark.parametrize(
    ("target", "dialled"),
    [
        (Target(URL, "10.0.0.1"), "https://10.0.0.1:8443/jrm/v1/score"),
        (Target(URL, "fd00::1"), "https://[fd00::1]:8443/jrm/v1/score"),
    ],
)
def test_an_address_is_dialled_under_the_name(target: Target, dialled: str) -> None:
    assert target.request("/v1/score") == (dialled, {"host": "fleet.test:8443"}, {"sni_hostname": "fleet.test"})
    assert target.name == f"{URL} at {target.address}"


def test_a_name_is_dialled_as_it_is() -> None:
    assert Target("http://fleet.test").request("/v1/score") == ("http://fleet.test/v1/score", {}, {})


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://fleet.test:8000", True),
        ("https://reward", True),
        ("http://localhost:8000", False),
        ("http://127.0.0.1:8000", False),
        ("http://[::1]:8000", False),
    ],
)
def test_names_are_resolved_and_addresses_are_not(url: str, expected: bool) -> None:
    assert is_name(url) is expected


@pytest.mark.parametrize(("url", "port"), [("http://a", 80), ("https://a", 443), ("https://a:8443/x", 8443)])
def test_ports(url: str, port: int) -> None:
    assert addresses.port_of(url) == port


def test_resolving() -> None:
    assert "127.0.0.1" in asyncio.run(addresses.resolve("localhost", 80))

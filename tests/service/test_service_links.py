"""What the platform sets is told from what a user misspelt."""

import pytest

from jrm_service.service_links import service_links

KUBERNETES = {
    "JRM_SERVICE_HOST": "10.0.0.1",
    "JRM_SERVICE_PORT": "8000",
    "JRM_SERVICE_PORT_HTTP": "8000",
    "JRM_PORT": "tcp://10.0.0.1:8000",
    "JRM_PORT_8000_TCP": "tcp://10.0.0.1:8000",
    "JRM_PORT_8000_TCP_PROTO": "tcp",
    "JRM_PORT_8000_TCP_PORT": "8000",
    "JRM_PORT_8000_TCP_ADDR": "10.0.0.1",
    "JRM_REDIS_SERVICE_HOST": "fd00::2",
    "JRM_REDIS_PORT": "tcp://[fd00::2]:6379",
    "JRM_REDIS_PORT_6379_TCP": "tcp://[fd00::2]:6379",
    "JRM_DNS_2_SERVICE_PORT_DNS_UDP": "53",
    "JRM_DNS_2_PORT_53_UDP": "udp://10.0.0.3:53",
}
DOCKER = {
    "JRM_NAME": "/trainer/jrm",
    "JRM_PORT": "tcp://172.17.0.5:8000",
    "JRM_PORT_8000_TCP_ADDR": "172.17.0.5",
    "JRM_ENV_JRM_MAX_QUEUE": "5000",
    "JRM_ENV_lang": "C.UTF-8",
}
USERS = {
    "JRM_PORT": "8000",
    "JRM_PORTS": "tcp://10.0.0.1:8000",
    "JRM_PORT_8000": "tcp://10.0.0.1:8000",
    "JRM_PORT_8000_TCP": "8000",
    "JRM_REDIS_PORT": "6379",
    "JRM_SERVICE_HOST": "0.0.0.0x",
    "JRM_SERVICE_PORT": "http",
    "JRM_REDIS_URL": "redis://10.0.0.1:6379",
    "JRM_NAME": "trainer",
    "JRM_ENV_LANG": "C",
    "JRM_MAX_QUEUE": "10",
    "JRMX_SERVICE_HOST": "10.0.0.1",
    "REDIS_PORT": "tcp://10.0.0.1:6379",
}


@pytest.mark.parametrize("environment", [KUBERNETES, DOCKER], ids=["Kubernetes", "Docker"])
def test_the_platforms(environment):
    assert service_links(environment | {"JRM_MAX_QUEUE": "10", "PATH": "/bin"}) == sorted(environment)


def test_the_users():
    assert service_links(USERS) == []

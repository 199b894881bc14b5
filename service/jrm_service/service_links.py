"""Finds the ``JRM_…`` variables that were set by the platform, not by the user.

Kubernetes sets variables in each pod for the Services of its namespace; ``docker run --link`` does so for containers.
For a Service called ``jrm`` or ``jrm-redis`` they begin like this server's own: ``JRM_PORT=tcp://10.0.0.1:8000``,
``JRM_REDIS_SERVICE_HOST=10.0.0.2``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import ip_address

_URL = re.compile(r"(tcp|udp|sctp)://\S+:\d+")
_NAME = r"(?P<name>JRM(_[A-Z0-9_]+)?)"
_HOST = re.compile(rf"{_NAME}_SERVICE_HOST")
_PORT_NUMBER = re.compile(rf"{_NAME}_SERVICE_PORT(_[A-Z0-9_]+)?")
_PORT_URL = re.compile(rf"{_NAME}_PORT(_\d+_(TCP|UDP|SCTP))?")
_PORT_PART = re.compile(rf"{_NAME}_PORT_\d+_(TCP|UDP|SCTP)_(PROTO|PORT|ADDR)")
_DOCKER_NAME = re.compile(rf"{_NAME}_NAME")
_DOCKER_VARIABLE = re.compile(rf"{_NAME}_ENV_\w+")


def service_links(environment: Mapping[str, str]) -> list[str]:
    """Return the names of those variables, sorted. Name and value must match, so that a misspelt setting does not."""
    linked = {
        match["name"]
        for name, value in environment.items()
        if (match := _DOCKER_NAME.fullmatch(name)) and value[:1] == "/"
    }

    def is_link(name: str, value: str) -> bool:
        docker = _DOCKER_NAME.fullmatch(name) or _DOCKER_VARIABLE.fullmatch(name)
        return (
            bool(_HOST.fullmatch(name) and _is_address(value))
            or bool(_PORT_NUMBER.fullmatch(name) and value.isascii() and value.isdigit())
            or bool(_PORT_URL.fullmatch(name) and _URL.fullmatch(value))
            or bool(_PORT_PART.fullmatch(name))
            or bool(docker and docker["name"] in linked)
        )

    return sorted(name for name, value in environment.items() if is_link(name, value))


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True

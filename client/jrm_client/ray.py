"""Requests as calls to a Ray Serve deployment, without HTTP. Imports ray, and is imported only by ``from_ray``."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle


class HandleTransport(httpx.AsyncBaseTransport):
    """Calls the method ``asgi`` of ``jrm_service.ray``'s replicas. Usable from any event loop, and picklable.

    Ray picks the replica; failures on the way there and back reach httpx as broken connections.
    """

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        if not isinstance(handle, DeploymentHandle):
            raise TypeError(f"handle: {type(handle).__name__}; expected what serve.run or get_app_handle returned")
        self._handle = handle

    @property
    def url(self) -> str:
        """A base URL for requests, which messages show: the names of the deployment and its application."""
        names = (self._handle.deployment_name, self._handle.app_name)
        return f"http://{'.'.join(re.sub('[^a-z0-9-]+', '-', name.lower()) for name in names)}.ray"

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request and return its reply, whose body is still to be read. Raises ConnectError or ReadError."""
        body = await request.aread()
        headers = [(name.lower(), value) for name, value in request.headers.raw]
        reply: Any = self._handle.options(method_name="asgi", stream=True).remote(
            request.method, request.url.raw_path.decode("ascii"), headers, body
        )
        try:
            with _broken_connections():
                status, reply_headers = await anext(reply)
        except BaseException:
            reply.cancel()
            raise
        return httpx.Response(status, headers=reply_headers, stream=_Body(reply))


class _Body(httpx.AsyncByteStream):
    def __init__(self, reply: Any) -> None:
        self._reply = reply

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _broken_connections():
            async for piece in self._reply:
                yield piece

    async def aclose(self) -> None:
        self._reply.cancel()  # without effect on one that has ended; else the replica stops


@contextlib.contextmanager
def _broken_connections() -> Iterator[None]:
    try:
        yield
    except StopAsyncIteration:
        raise httpx.ReadError("the replica sent nothing") from None
    except RayError as error:  # the replica has died, or the cluster lost what it sent
        raise httpx.ReadError(_first_line(error)) from error
    except RayServeException as error:  # there is no such deployment, or it accepts no calls
        raise httpx.ConnectError(_first_line(error)) from error


def _first_line(error: Exception) -> str:
    text = getattr(error, "message", None) or str(error)
    return f"{type(error).__name__}: {str(text).strip().partition(chr(10))[0][:200]}"

"""The waiting line over real sockets: bodies that wait for room, slow uploaders, deadlines from arrival on."""

import asyncio
import base64
import json
import socket
import threading
from urllib.parse import urlsplit

import httpx
import pytest

from jrm_service.api.keys import Key, digest
from jrm_service.scoring.fakes import FakeBackend, SlowBackend
from jrm_service.settings import Settings
from support import servers
from support.pictures import encode, photo
from support.servers import Metric, error_of

IMAGE = base64.b64encode(encode(photo(32, 32))).decode()


def body(instruction: str = "x", edits: int = 1, **more) -> bytes:
    pictures = [base64.b64encode(encode(photo(32, 32, seed=seed + 1))).decode() for seed in range(edits)]
    group = {"source": IMAGE, "instruction": instruction, "edits": pictures}
    return json.dumps({"groups": [group]} | more).encode()


def score(url: str, content: bytes, **headers: str) -> httpx.Response:
    return httpx.post(f"{url}/v1/score", content=content, headers={"content-type": "application/json"} | headers)


def half_sent(url: str, content: bytes, headers: str = "") -> socket.socket:
    """A connection on which half of a request has been sent."""
    where = urlsplit(url)
    connection = socket.create_connection((where.hostname, where.port))
    head = f"POST /v1/score HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n{headers}"
    head += f"content-length: {len(content)}\r\n\r\n"
    connection.sendall(head.encode() + content[: len(content) // 2])
    return connection


def status_of(connection: socket.socket) -> int:
    connection.settimeout(30)
    return int(connection.makefile("rb").readline().split()[1])


def test_slow_uploaders_hold_no_place_among_the_candidates():
    with servers.serving(Settings(backend="fake", max_queue=1, max_candidates=1)) as url:
        content = body()
        slow = [half_sent(url, content) for _ in range(20)]
        assert Metric(url)("jrm_queue_depth") == 0
        assert score(url, content).status_code == 200
        for connection in slow:
            connection.sendall(content[len(content) // 2 :])
        assert [status_of(connection) for connection in slow] == [200] * 20
        for connection in slow:
            connection.close()


def test_bodies_over_the_budget_of_all_wait_their_turn_and_are_not_refused():
    content = body()
    settings = Settings(backend="fake", max_body_bytes=len(content), max_bodies_bytes=len(content))
    with servers.serving(settings) as url:

        async def run() -> list[int]:
            async with httpx.AsyncClient(base_url=url, timeout=30) as client:
                headers = {"content-type": "application/json"}
                asking = [client.post("/v1/score", content=content, headers=headers) for _ in range(20)]
                return [reply.status_code for reply in await asyncio.gather(*asking)]

        assert asyncio.run(run()) == [200] * 20


def test_a_body_whose_turn_does_not_come_in_the_time_of_its_head_is_504():
    content = body()
    settings = Settings(backend="fake", max_body_bytes=len(content), max_bodies_bytes=len(content))
    with servers.serving(settings) as url:
        slow = half_sent(url, content)
        first = score(url, content, **{"x-jrm-timeout-ms": "100"})
        assert error_of(first) == (504, "deadline_exceeded")
        slow.close()
        assert score(url, content).status_code == 200


def test_timeout_ms_counts_from_the_arrival_of_the_request():
    """Its first half came in time; the rest came later than that."""
    with servers.serving() as url:
        content = body(timeout_ms=50)
        slow = half_sent(url, content)
        threading.Event().wait(0.1)  # time that the deadline counts, not a moment to wait for
        slow.sendall(content[len(content) // 2 :])
        assert status_of(slow) == 504
        slow.close()


@pytest.mark.parametrize("said", ["0", "-1", "soon", "", "1e3", "9" * 30, "\u00b2"])
def test_a_head_that_says_no_time_is_no_reason_to_fail(fake_server, said):
    headers = {"content-type": "application/json", "x-jrm-timeout-ms": said.encode("latin-1")}
    reply = httpx.post(f"{fake_server}/v1/score", content=body(), headers=headers)
    assert reply.status_code in (200, 504 if said == "0" else 200)


def test_a_caller_who_says_nothing_waits_in_the_same_line(tmp_path):
    """A key with much in line does not hold up a plain request of another key."""
    keys = tmp_path / "keys"
    keys.write_text("".join(Key(name, digest(name.encode())).line() + "\n" for name in ("greedy", "modest")))
    slow = SlowBackend(FakeBackend(), gated=True)
    settings = Settings(backend="fake", api_keys_file=keys, max_queue=2, max_candidates=2, cache_entries=0)
    with servers.serving(settings, load=lambda: servers.fake_parts(slow)) as url:

        async def run() -> None:
            async with httpx.AsyncClient(base_url=url, timeout=30) as client:
                order: list[str] = []

                async def ask(name: str, number: int, **more: str) -> None:
                    headers = {"content-type": "application/json", "authorization": f"Bearer {name}"} | more
                    content = body(f"{name} {number}", 2)
                    reply = await client.post("/v1/score", content=content, headers=headers)
                    assert reply.status_code == 200
                    order.append(name)

                asking = [asyncio.create_task(ask("greedy", 0))]
                await asyncio.to_thread(slow.wait_entered)
                sdk = {"x-jrm-timeout-ms": "600000"}
                asking += [asyncio.create_task(ask("greedy", number, **sdk)) for number in range(1, 15)]
                await asyncio.sleep(0.3)  # the line is seen from outside only by who waits in it
                asking.append(asyncio.create_task(ask("modest", 0)))
                await asyncio.sleep(0.3)
                slow.open()
                await asyncio.gather(*asking)
                assert "modest" in order[:4]

        asyncio.run(run())

"""JRMClient in the places where trainers put it: threads, forks, notebooks, pickles, programs that just end."""

import asyncio
import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from client.conftest import FAST
from client.scripted_server import Hang, Reply, Request, ScriptedServer, Stream, reward_of, score_all
from jrm_client import JRMClient

Serve = Callable[..., ScriptedServer]
Connect = Callable[..., JRMClient]

EVENT = b'data: {"dimension": "quality", "delta": "{"}\n\n'


def test_many_threads_share_a_client(serve: Serve, connect: Connect) -> None:
    client = connect(serve())
    edits = [b"%d" % number for number in range(64)]
    with ThreadPoolExecutor(16) as pool:
        rewards = list(pool.map(lambda edit: client.score(b"S", edit, "red").reward, edits))
    assert rewards == [reward_of(edit) for edit in edits]


def test_inside_a_running_event_loop(serve: Serve, connect: Connect) -> None:
    client = connect(serve())

    async def cell() -> float:
        return client.score(b"S", b"A", "red").reward

    assert asyncio.run(cell()) == reward_of(b"A")


def test_pickled_client(serve: Serve) -> None:
    server = serve()
    with JRMClient(server.url, api_key="sk-1", timeout=7) as client:
        client.score(b"S", b"A", "red")
        with pickle.loads(pickle.dumps(client)) as copy:
            assert copy.score(b"S", b"A", "red").reward == reward_of(b"A")
    assert [request.headers["authorization"] for request in server.requests] == ["Bearer sk-1"] * 2


def test_closing_twice_and_calling_after(serve: Serve) -> None:
    client = JRMClient(serve().url)
    client.score(b"S", b"A", "red")
    client.close()
    client.close()
    with pytest.raises(RuntimeError, match="this client is closed"):
        client.score(b"S", b"A", "red")


def test_closing_ends_the_calls_in_progress(serve: Serve) -> None:
    arrived = threading.Event()
    client = JRMClient(serve(then=Hang()).url)

    def call() -> None:
        arrived.set()
        client.score(b"S", b"A", "red")

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(call)
        arrived.wait()
        client.close()
        with pytest.raises(RuntimeError, match="closed"):
            future.result()


def test_closing_ends_the_streams_in_progress(serve: Serve) -> None:
    server = serve(Stream([EVENT], "open"))
    client = JRMClient(server.url)
    stream = client.explain_stream(b"S", b"A", "red")
    next(stream)
    client.close()
    assert server.disconnected.wait(60)
    with pytest.raises(RuntimeError, match="closed"):
        next(stream)


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "jrm-client"]


def test_no_thread_before_the_first_call_and_none_after_close(serve: Serve) -> None:
    before = threads()
    client = JRMClient(serve().url)
    assert threads() == before
    client.score(b"S", b"A", "red")
    assert len(threads()) == len(before) + 1
    client.close()
    assert threads() == before


def test_a_forgotten_client_takes_its_thread_along(serve: Serve) -> None:
    before = threads()
    client = JRMClient(serve().url)
    client.score(b"S", b"A", "red")
    del client
    gc.collect()
    assert threads() == before


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_after_a_fork_both_processes_go_on(serve: Serve) -> None:
    server = serve()
    with JRMClient(server.url, backoff=FAST) as client:
        client.score(b"S", b"A", "red")
        child = os.fork()
        if child == 0:
            status = 1
            try:
                scored = [client.score(b"S", edit, "red").reward for edit in (b"A", b"B")]
                client.close()
                status = 0 if scored == [reward_of(b"A"), reward_of(b"B")] else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert client.score(b"S", b"C", "red").reward == reward_of(b"C")
        assert server.connections == 2  # the parent's connection was neither used nor closed by the child


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_while_another_thread_is_in_a_call(serve: Serve) -> None:
    in_call, forked = threading.Event(), threading.Event()

    def wait_for_the_fork(request: Request) -> Reply:
        in_call.set()
        forked.wait()
        return score_all(request)

    slow, fast = serve(wait_for_the_fork), serve()
    with JRMClient(slow.url) as client, JRMClient(fast.url) as other, ThreadPoolExecutor(1) as pool:
        future = pool.submit(client.score, b"S", b"A", "red")
        in_call.wait()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                status = 0 if other.score(b"S", b"B", "red").reward == reward_of(b"B") else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        forked.set()
        assert future.result().reward == reward_of(b"A")


def run(code: str, url: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-W", "error", "-c", code, url], capture_output=True, text=True, check=False)


def test_a_program_ends_cleanly_without_closing(serve: Serve) -> None:
    code = (
        "import sys; from jrm_client import JRMClient; c = JRMClient(sys.argv[1])\n"
        "print(c.score(b'S', b'A', 'red').model)"
    )
    done = run(code, serve().url)
    assert (done.returncode, done.stdout, done.stderr) == (0, "scripted\n", "")


def test_a_forked_child_ends_cleanly_without_closing(serve: Serve) -> None:
    code = (
        "import os, sys; from jrm_client import JRMClient; c = JRMClient(sys.argv[1]); c.score(b'S', b'A', 'red')\n"
        "child = os.fork()\n"
        "if child == 0: c.score(b'S', b'A', 'red'); sys.exit(7)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7\n"
        "print(c.score(b'S', b'A', 'red').model)"
    )
    done = run(code, serve().url)
    assert (done.returncode, done.stdout, done.stderr) == (0, "scripted\n", "")


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C as in a terminal: a shell starts its background jobs with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_interrupts_a_call_and_the_client_stays_usable(serve: Serve, connect: Connect) -> None:
    main = threading.main_thread().ident
    assert main is not None

    def interrupt(request: Request) -> Reply:
        signal.pthread_kill(main, signal.SIGINT)
        return Reply(200, body=b"", headers={"content-length": "1000"})  # whose body never comes

    server = serve(interrupt)
    client = connect(server)
    with pytest.raises(KeyboardInterrupt):
        client.score(b"S", b"A", "red")
    assert server.disconnected.wait(60)  # the request was given up, not left to run on
    assert client.score(b"S", b"A", "red").reward == reward_of(b"A")


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_interrupts_a_stream_and_closes_its_connection(serve: Serve, connect: Connect) -> None:
    main = threading.main_thread().ident
    assert main is not None
    server = serve(Stream([EVENT], "open", after=lambda: signal.pthread_kill(main, signal.SIGINT)))
    client = connect(server)
    with pytest.raises(KeyboardInterrupt):
        list(client.explain_stream(b"S", b"A", "red"))
    assert server.disconnected.wait(60)
    assert client.score(b"S", b"A", "red").reward == reward_of(b"A")


def test_a_program_may_end_in_the_middle_of_a_stream(serve: Serve) -> None:
    server = serve(Stream([EVENT], "open"))
    code = (
        "import sys; from jrm_client import JRMClient\n"
        "stream = JRMClient(sys.argv[1]).explain_stream(b'S', b'A', 'red')\n"
        "print(next(stream).delta)"
    )
    done = run(code, server.url)
    assert (done.returncode, done.stdout, done.stderr) == (0, "{\n", "")
    assert server.disconnected.wait(60)

"""An OpenAI-compatible endpoint on a real socket that answers by a script, and an annotator with and without faults."""

import contextlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WORDS = {4: "flawless", 3: "nearly right", 2: "clearly wrong", 1: "a failure"}
VERDICT_WORDS = {"better": "superior", "worse": "inferior", "equal": "a match"}


@dataclass(frozen=True)
class Reply:
    """What the endpoint answers. A chat completion with ``text``, unless there is a ``body``."""

    text: str = ""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    finish: str = "stop"
    usage: Mapping[str, int] | None = field(default_factory=lambda: {"prompt_tokens": 1000, "completion_tokens": 100})

    def encoded(self) -> bytes:
        if self.body is not None:
            return self.body
        if self.status != 200:
            return json.dumps({"error": {"message": self.text}}).encode()
        choice = {"message": {"role": "assistant", "content": self.text}, "finish_reason": self.finish}
        return json.dumps({"choices": [choice], "usage": self.usage}).encode()


@dataclass(frozen=True)
class Asked:
    """A request as the endpoint saw it."""

    headers: Mapping[str, str]
    body: dict[str, Any]

    @property
    def texts(self) -> list[str]:
        """The text of each message, images left out."""
        contents = [message["content"] for message in self.body["messages"]]
        return [content if isinstance(content, str) else content[-1]["text"] for content in contents]

    @property
    def images(self) -> list[str]:
        """Data URLs of the first message."""
        content = self.body["messages"][0]["content"]
        return [] if isinstance(content, str) else [part["image_url"]["url"] for part in content[:-1]]

    @property
    def reads(self) -> bool:
        """Whether it asks for what a critique argues for, and not for a critique."""
        return self.texts[0].startswith("Here is what somebody wrote")

    @property
    def instruction(self) -> str:
        match = re.search(r'Instruction of the edit: "(.*)"', self.texts[0])
        return match[1] if match else ""

    @property
    def tries(self) -> int:
        """How many answers there were before."""
        return len(self.body["messages"]) // 2


class ScriptedEndpoint:
    """Answers each request by ``script``; ``asked`` has the requests in the order of their arrival."""

    def __init__(self, script: Callable[[Asked], Reply]) -> None:
        self.script = script
        self.asked: list[Asked] = []
        self.most_at_once = 0
        self.url = ""
        self._now = 0
        self._lock = threading.Lock()

    def answer(self, asked: Asked) -> Reply:
        with self._lock:
            self.asked.append(asked)
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            return self.script(asked)
        finally:
            with self._lock:
                self._now -= 1

    @contextlib.contextmanager
    def serving(self) -> "Iterator[ScriptedEndpoint]":
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                assert self.path == "/v1/chat/completions"
                reply = endpoint.answer(Asked(dict(self.headers), body))
                data = reply.encoded()
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # a caller that was killed
                    self.send_response(reply.status)
                    for name, value in {**reply.headers, "content-length": str(len(data))}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        self.url = f"http://127.0.0.1:{server.server_port}/v1"
        try:
            yield self
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


def judgement(asked: Asked) -> int | str:
    """What the request says people found."""
    text = asked.texts[0]
    if (score := re.search(r"Judgement.*: ([\d.]+) of 4", text)) is not None:
        return round(float(score[1]))
    verdict = re.search(r"people found it (better|worse|neither)", text)
    assert verdict is not None, text
    return {"neither": "equal"}.get(verdict[1], verdict[1])


def words_for(found: int | str) -> str:
    return WORDS[found] if isinstance(found, int) else VERDICT_WORDS[found]


def critique(found: int | str, *, regions: bool, **changes: Any) -> str:
    """A critique that argues for what people found, boxes with y first; ``changes`` replace keys."""
    if not regions:
        return json.dumps({"reasoning": f"The light is {words_for(found)}."} | changes)
    return json.dumps(
        {
            "edit_region": [{"id": 0, "label": "red square", "bbox_2d": [100, 200, 300, 500]}],
            "reasoning": f"<|bbox_0|> The square is {words_for(found)}. <|global|> The rest was kept.",
        }
        | changes
    )


def good(asked: Asked) -> Reply:
    """An annotator that is right: it writes what is asked for, and reads what is written."""
    if asked.reads:
        return Reply(read(asked.texts[0]))
    return Reply(critique(judgement(asked), regions="edit_region" in asked.texts[0]))


def read(text: str) -> str:
    for score, word in WORDS.items():
        if word in text:
            return json.dumps({"score": score})
    return json.dumps({"verdict": next(verdict for verdict, word in VERDICT_WORDS.items() if word in text)})

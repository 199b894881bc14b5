"""Replies in the documentation: each is what the command above it prints, with the bundled checkpoint.

``python -m tools.replies`` makes all of them again and rewrites those that have changed; with pages as arguments,
theirs alone. Critiques need vLLM. A page marks a reply by a comment; its command is the ``bash`` block before that::

    ```bash
    curl -s http://127.0.0.1:8000/v1/info
    ```

    <!-- reply -->
    ```json
    {"model": "jrm-tiny"}
    ```

Commands are run as they stand, in the root of the repository.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from jrm_service.bench.server import serving

ROOT = Path(__file__).parents[1]
WIDTH = 120
TOLERANCE = 1e-3
# What another request, moment or machine changes: only its shape is compared.
CHANGING = {"id", "created", "timings_ms", "tokens_computed", "versions"}
# With the cache, a reply would depend on the commands before it.
FLAGS = {"cache_entries": 0}
EXPLAINING_FLAGS = FLAGS | {"serve": "score,explain"}
_ADDRESS = "http://127.0.0.1:8000"
_BASH = re.compile(r"^```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_REPLY = re.compile(r"^<!-- reply -->\n```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Reply:
    """One reply on a page: its command, the text that is shown, and where that begins and ends in the page."""

    command: str
    shown: str
    json: bool
    begin: int
    end: int

    @property
    def explains(self) -> bool:
        """Whether it needs a server that writes critiques."""
        return "/explain" in self.command

    def take(self, url: str) -> str:
        """What the command prints now, asking the server at ``url``. Raises CalledProcessError where it fails."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = os.environ | {"PATH": path, "COLUMNS": "80"}
        command = ["bash", "-ec", self.command.replace(_ADDRESS, url)]
        printed = subprocess.run(  # noqa: S603 - the documentation's own commands
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True
        ).stdout.replace(url, _ADDRESS)
        if self.json:
            return laid_out(json.loads(printed)) + "\n"
        return "".join(f"{line.rstrip()}\n" for line in printed.splitlines())

    def differences(self, taken: str) -> list[str]:
        """Where the reply that is shown is not the one that was taken; empty where they are the same."""
        if self.json:
            return list(_differences(json.loads(self.shown), json.loads(taken), "reply"))
        return [] if self.shown == taken else [f"shown:\n{self.shown}\nprinted:\n{taken}"]


def of(page: Path) -> list[Reply]:
    """The replies of a page, in order. Raises ValueError for one without a command."""
    text = page.read_text(encoding="utf-8")
    replies = []
    for found in _REPLY.finditer(text):
        commands = _BASH.findall(text, 0, found.start())
        if not commands:
            raise ValueError(f"{page}: a reply without a bash block before it")
        replies.append(Reply(commands[-1], found[2], found[1].startswith("json"), *found.span(2)))
    return replies


def pages() -> list[Path]:
    """The pages of the documentation that show replies."""
    return [page for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))) if of(page)]


def laid_out(value: object, indent: int = 0, before: int = 0) -> str:
    """JSON with each list and object on one line where it fits, after ``before`` characters of its line.

    In a longer one, plain values are filled like text; the outermost has each item on lines of its own.
    """
    line = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, dict | list) or (indent and indent + before + len(line) < WIDTH):
        return line
    inner = "\n" + " " * (indent + 2)
    keys, values = ([""] * len(value), value) if isinstance(value, list) else (_keys(value), value.values())
    lines: list[str] = []
    filling = False  # whether the last line has plain values only
    for key, item in zip(keys, values, strict=True):
        text = key + laid_out(item, indent + 2, len(key))
        plain = bool(indent) and not isinstance(item, dict | list)
        if plain and filling and len(inner) + len(lines[-1]) + len(text) + 2 < WIDTH:
            lines[-1] += f", {text}"
        else:
            lines.append(text)
        filling = plain
    begin, end = "[]" if isinstance(value, list) else "{}"
    return begin + inner + f",{inner}".join(lines) + inner[:-2] + end


def _keys(value: dict[str, object]) -> list[str]:
    return [f"{json.dumps(key)}: " for key in value]


def _differences(shown: object, taken: object, place: str, *, by_shape: bool = False) -> Iterator[str]:
    if isinstance(shown, dict) and isinstance(taken, dict):
        if shown.keys() != taken.keys():
            yield f"{place}: has {sorted(taken)}, the page {sorted(shown)}"
        for key in shown.keys() & taken.keys():
            changing = by_shape or key in CHANGING
            yield from _differences(shown[key], taken[key], f"{place}.{key}", by_shape=changing)
    elif isinstance(shown, list) and isinstance(taken, list):
        if len(shown) != len(taken):
            yield f"{place}: has {len(taken)} items, the page {len(shown)}"
        for index, (left, right) in enumerate(zip(shown, taken, strict=False)):
            yield from _differences(left, right, f"{place}[{index}]", by_shape=by_shape)
    elif not _alike(shown, taken, by_shape=by_shape):
        yield f"{place}: is {taken!r}, on the page {shown!r}"


def _alike(shown: object, taken: object, *, by_shape: bool) -> bool:
    if by_shape or type(shown) is not type(taken):
        return type(shown) is type(taken)
    if isinstance(shown, float) and isinstance(taken, float):
        return math.isclose(shown, taken, rel_tol=0, abs_tol=TOLERANCE)
    return shown == taken


def rewrite(page: Path, url: str, *, explains: bool) -> int:
    """Bring those replies of a page up to date that a server gives, with critiques or without. Returns how many."""
    taken_now = [(reply, reply.take(url)) for reply in of(page) if reply.explains is explains]
    changed = [(reply, taken) for reply, taken in taken_now if reply.differences(taken)]
    text = page.read_text(encoding="utf-8")
    for reply, taken in reversed(changed):
        text = text[: reply.begin] + taken + text[reply.end :]
    page.write_text(text, encoding="utf-8")
    return len(changed)


def main(arguments: Sequence[str]) -> None:
    """Rewrite the pages that are named, or all of them."""
    named = [Path(name).resolve() for name in arguments] or pages()
    for explains, flags in ((False, FLAGS), (True, EXPLAINING_FLAGS)):
        theirs = [page for page in named if any(reply.explains is explains for reply in of(page))]
        if theirs:
            with serving(None, flags) as url:
                for page in theirs:
                    print(f"{page.relative_to(ROOT)}: {rewrite(page, url, explains=explains)} changed", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

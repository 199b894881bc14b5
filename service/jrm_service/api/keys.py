"""API keys: their lines in a keys file, their scopes and limits, and how a caller's key is found. Pure.

A line is ``NAME sha256:HEX [LIMIT=NUMBER …] [scope=SCOPE,…]``. Blank lines are ignored, and so is what
follows a ``#``::

    # who       hash of the key         limits of this key alone
    trainer-a   sha256:2bd806c9…1f32    requests=64 candidates_per_minute=20000
    eval        sha256:9c56cc51…b374
    dashboard   sha256:71f80be3…08ac    scope=watch
    launcher    sha256:0be34c1d…77e2    scope=admin

The file holds no secret. A key is 256 random bits and is stored as its plain SHA-256: salts and slow hashes make it
expensive to guess what a human made up, whereas this cannot be guessed at any speed, and a slow hash would be paid on
every request.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256

from jrm_service.errors import Forbidden, KeysError

# So that a scanner for leaked secrets can recognise one.
_SECRET_PREFIX = "jrm_"  # noqa: S105 - the part of it that is not secret
_SECRET_BYTES = 32
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DIGEST = re.compile(r"sha256:([0-9a-fA-F]{64})")
SCOPES = ("watch", "admin")
"""What a key may be allowed beyond scores and critiques, which every key is allowed."""
_SCOPE = "scope="
_LIMIT = re.compile(r"(requests|candidates_per_minute)=([1-9][0-9]{0,8})")


@dataclass(frozen=True, slots=True)
class Key:
    """One caller. ``name`` may be shown and logged; ``digest`` is the SHA-256 of the secret.

    ``requests`` limits how many run at once, ``candidates_per_minute`` how many candidates are accepted; None: no limit
    of its own. ``scopes`` are what it is allowed beyond what every key is.
    """

    name: str
    digest: bytes
    requests: int | None = None
    candidates_per_minute: int | None = None
    scopes: tuple[str, ...] = ()

    def line(self) -> str:
        """Return its line in a keys file, without the line's end."""
        limits = {"requests": self.requests, "candidates_per_minute": self.candidates_per_minute}
        words = [f"{name}={value}" for name, value in limits.items() if value is not None]
        words += [_SCOPE + ",".join(self.scopes)] if self.scopes else []
        return " ".join([self.name, f"sha256:{self.digest.hex()}", *words])


def digest(secret: bytes) -> bytes:
    """Return the digest of a secret, which is what a keys file stores."""
    return sha256(secret).digest()


def new_secret() -> str:
    """Return a new key, as its caller will send it: 256 random bits in printable ASCII."""
    return _SECRET_PREFIX + secrets.token_urlsafe(_SECRET_BYTES)


def read_scopes(text: str) -> tuple[str, ...]:
    """The scopes in a comma-separated list. Raises ValueError for an unknown one, without quoting it."""
    scopes = tuple(text.split(","))
    if any(scope not in SCOPES for scope in scopes):
        raise ValueError(f"an unknown scope; expected {', '.join(SCOPES)}")
    if len(set(scopes)) < len(scopes):
        raise ValueError("a scope is there twice")
    return scopes


def is_name(text: str) -> bool:
    """Whether this is a valid name of a key: 1 to 64 letters, digits, dots, dashes and underscores."""
    return _NAME.fullmatch(text) is not None


class Scopes:
    """Checks what a caller may do beyond scoring.

    ``current_key`` returns the current version of a key, or None once it was removed; without it there are no keys,
    and every caller may do everything.
    """

    def __init__(self, current_key: Callable[[Key], Key | None] | None) -> None:
        self._current_key = current_key

    def allow(self, key: Key | None, scope: str) -> bool:
        """Whether the caller with this key may do what the scope is for."""
        if self._current_key is None:
            return True
        known = None if key is None else self._current_key(key)
        return known is not None and scope in known.scopes

    def require(self, key: Key | None, scope: str) -> None:
        """Raise Forbidden unless ``allow``."""
        if not self.allow(key, scope):
            raise Forbidden(
                f"this API key does not have the scope '{scope}': add scope={scope} to its line in the keys file"
            )


class KeyRing:
    """The keys that open one server."""

    def __init__(self, keys: Sequence[Key]) -> None:
        self._keys = {key.digest: key for key in keys}

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, secret: bytes) -> Key | None:
        """The key with this secret.

        Digests are compared: the time that takes reveals nothing about a secret whose digest nobody can choose.
        """
        return self._keys.get(digest(secret))

    def current(self, key: Key) -> Key | None:
        """This ring's version of a key that was found earlier, perhaps in another ring; None if it has none."""
        return self._keys.get(key.digest)


def parse(text: str) -> list[Key]:
    """Read the lines of a keys file.

    Raises KeysError with every problem. No problem quotes its line: it may be a key that was pasted there by mistake.
    """
    keys: list[Key] = []
    problems: list[str] = []
    seen: dict[str | bytes, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            key = _key(words)
        except ValueError as error:
            problems.append(f"line {number}: {error}")
            continue
        for what, value in (("name", key.name), ("key", key.digest)):
            if value in seen:
                problems.append(f"line {number}: the same {what} as in line {seen[value]}")
            seen.setdefault(value, number)
        keys.append(key)
    if problems:
        raise KeysError(problems)
    return keys


def _key(words: Sequence[str]) -> Key:
    if len(words) < 2:
        raise ValueError("expected NAME sha256:HEX")
    name, hashed, *fields = words
    if not is_name(name):
        raise ValueError("a name is 1 to 64 letters, digits, dots, dashes and underscores, first a letter or digit")
    match = _DIGEST.fullmatch(hashed)
    if match is None:
        raise ValueError("after the name comes sha256: and 64 hexadecimal digits")
    limits: dict[str, int] = {}
    scopes: tuple[str, ...] = ()
    for field in fields:
        if field.startswith(_SCOPE):
            if scopes:
                raise ValueError("scope is there twice")
            scopes = read_scopes(field.removeprefix(_SCOPE))
            continue
        parsed = _LIMIT.fullmatch(field)
        if parsed is None:
            raise ValueError(
                "a limit is requests=NUMBER or candidates_per_minute=NUMBER, from 1 to 999999999; "
                f"else there is scope={','.join(SCOPES)}"
            )
        if parsed[1] in limits:
            raise ValueError(f"{parsed[1]} is there twice")
        limits[parsed[1]] = int(parsed[2])
    return Key(name, bytes.fromhex(match[1]), **limits, scopes=scopes)

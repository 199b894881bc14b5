"""One checkpoint for a whole run: a client that is pinned to a fingerprint returns no scores from another one."""

from __future__ import annotations

from .errors import APIResponseError, FingerprintMismatch
from .protocol import FINGERPRINT_HEADER
from .wire import Reply


class Pin:
    """The fingerprint that a client is pinned to. May be used from several threads.

    ``setting``: True pins the fingerprint of the first reply, a string is the fingerprint, False pins nothing.
    """

    def __init__(self, setting: bool | str) -> None:
        self._on = setting is not False
        self._pinned: dict[str, tuple[str, str]] = {}
        if isinstance(setting, str):
            self._pinned["pin"] = (setting, "")

    @property
    def fingerprint(self) -> str | None:
        """The fingerprint that is pinned; None before the first reply, and without pinning."""
        return self._pinned["pin"][0] if self._pinned else None

    @property
    def replica(self) -> str:
        """The replica whose reply was pinned; empty for a fingerprint that the caller gave."""
        return self._pinned["pin"][1] if self._pinned else ""

    def check(self, fingerprint: str | None, reply: Reply) -> None:
        """Compare the fingerprint of ``reply``; without a pin, anything goes.

        Raises FingerprintMismatch if it is not the pinned one, APIResponseError if the reply has none.
        """
        if not self._on:
            return
        if not fingerprint:
            raise APIResponseError(
                f"the reply of {reply.replica} has no fingerprint, but this client is pinned: nobody can tell which "
                f"checkpoint it comes from. Does a proxy remove the header {FINGERPRINT_HEADER}?",
                request_id=reply.request_id,
            )
        # setdefault is atomic: when two threads have a first reply at once, only one of them pins.
        pinned, replica = self._pinned.setdefault("pin", (fingerprint, reply.replica))
        if fingerprint != pinned:
            origin = f" (the first reply, from {replica})" if replica else ""
            raise FingerprintMismatch(
                f"{reply.replica} has the checkpoint {fingerprint}, but this client is pinned to {pinned}{origin}: the "
                "rewards of the two are not comparable. Give all replicas one checkpoint; to go on with another one, "
                "make a new client, with pin_fingerprint=False to compare nothing",
                replica=reply.replica,
                pinned=pinned,
                served=fingerprint,
                request_id=reply.request_id,
            )

"""Stand-ins for trainers' clients: they send, retry and give up as the real ones do, and never wait."""

import pickle
from dataclasses import dataclass, field

import requests
from requests.adapters import HTTPAdapter
from urllib3 import Retry

from support import wire_bodies


class GaveUp(Exception):
    """The trainer stops here. The message is what its user sees."""


@dataclass
class Waits:
    """What a client would have slept through, in seconds; the waiting itself is left out."""

    seconds: list[float] = field(default_factory=list)
    most: int = 3

    def wait(self, seconds: float) -> None:
        self.seconds.append(seconds)
        if len(self.seconds) >= self.most:
            raise StillWaiting


class StillWaiting(Exception):
    """It would go on waiting and asking; nobody watches any longer."""


class QuickRetry(Retry):
    """urllib3's own, with a record in the place of its sleep."""

    def __init__(self, *args, waits: Waits, **options) -> None:
        super().__init__(*args, **options)
        self.waits = waits

    def new(self, **options) -> Retry:
        return super().new(waits=self.waits, **options)

    def sleep(self, response=None) -> None:
        after = self.get_retry_after(response) if response is not None else None
        self.waits.wait(self.get_backoff_time() if after is None else after)


def edit_r1(url: str, pairs, waits: Waits, mode: str = "logits_non_cot") -> list[float]:
    """Edit-R1, UniWorld-V2 and FIRM-Reward: up to 1,000 retries of a 500, and of whatever says ``retry-after``."""
    session = requests.Session()
    retries = QuickRetry(total=1000, backoff_factor=1, status_forcelist=[500], allowed_methods=False, waits=waits)
    session.mount("http://", HTTPAdapter(max_retries=retries))
    with session:
        data = pickle.dumps(pairs if isinstance(pairs, dict) else wire_bodies.edit_r1(pairs))
        response = session.post(f"{url}/mode/{mode}", data=data, timeout=360)
    try:
        return pickle.loads(response.content)["scores"]
    except Exception as error:
        raise GaveUp(f"{type(error).__name__}: {error}") from error


def unirl(url: str, pairs, waits: Waits, *, retries: int = 3) -> list[tuple[float | None, str | None]]:
    """UniRL: three tries, one second apart, of all but 4xx; then the reward or the error of each sample."""
    body = pairs if isinstance(pairs, dict) else wire_bodies.unirl(pairs)
    for attempt in range(retries):
        response = requests.post(f"{url}/score", json=body, timeout=300)
        if response.ok:
            break
        if 400 <= response.status_code < 500 and response.status_code != 429:
            raise GaveUp(f"{response.status_code} {response.text}")
        if attempt < retries - 1:
            waits.wait(1.0)
    else:
        raise GaveUp(f"failed after {retries} retries")
    reply = response.json()
    assert reply["protocol_version"] == "1"
    assert len(reply["results"]) == len(reply["errors"]) == len(body["requests"])
    return [
        (float(next(iter(result["jrm"].values()))), None) if "jrm" in result else (None, errors.get("jrm"))
        for result, errors in zip(reply["results"], reply["errors"], strict=True)
    ]


def flow_factory(url: str, pairs, waits: Waits, *, retries: int = 3) -> list[float]:
    """Flow-Factory: three tries without a pause, unless the reply is 200 with an error."""
    body = pairs if isinstance(pairs, dict) else wire_bodies.flow_factory(pairs)
    for _ in range(retries):
        response = requests.post(f"{url}/compute", json=body, timeout=60)
        if response.ok:
            data = response.json()
            if data.get("error"):
                raise GaveUp(f"Server error: {data['error']}")
            return data["rewards"]
        waits.wait(0.0)
    raise GaveUp("Failed to connect")


def editscore(url: str, pairs, waits: Waits) -> list[float]:
    """EditScore: one try; None for whatever is not 200, which its trainer cannot unpack."""
    data = pickle.dumps(pairs if isinstance(pairs, dict) else wire_bodies.editscore(pairs))
    response = requests.post(url, data=data, headers={"Content-Type": "application/octet-stream"}, timeout=600)
    if not response.ok:
        raise GaveUp("TypeError: cannot unpack non-iterable NoneType object")
    reply = pickle.loads(response.content)
    return reply.get("rewards", [])


def deepgen(url: str, pairs, waits: Waits) -> list[float]:
    """deepgen_rl and UniRL-Zero: one try; any status but 200, and an error in a 200, ends it."""
    data = pickle.dumps(pairs if isinstance(pairs, dict) else wire_bodies.deepgen(pairs))
    response = requests.post(url, data=data, timeout=600)
    if not response.ok:
        raise GaveUp(f"{response.status_code}")
    reply = pickle.loads(response.content)
    if "error" in reply:
        raise GaveUp(f"{reply['error']}")
    return reply["scores"]


CLIENTS = {
    "edit-r1": edit_r1,
    "unirl": unirl,
    "flow-factory": flow_factory,
    "editscore": editscore,
    "deepgen": deepgen,
}

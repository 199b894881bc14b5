"""Who may take the places of a queue of bounded length. Pure: the time is passed in.

As long as there is room, it goes to whoever comes first, and one tenant may fill the queue. When there is none, a
tenant that is refused and holds little leaves a *claim*: until it comes back, or the claim runs out, tenants that hold
more than their share are refused what would use up the places it needs. So a tenant with endless requests cannot keep
another one out by being faster to take each place that becomes free, and nothing is reserved for who does not ask.

A tenant's share is an equal part of the queue for each tenant that holds or claims something. Who holds nothing may
always make a claim, also for more than a share: everyone then waits, but for whose claim is older, so that a large
request gets its chance.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import takewhile


@dataclass(frozen=True, slots=True)
class _Claim:
    places: int
    until: float


class Places:
    """The places of one queue, by tenant.

    Args:
        total: how many there are.
    """

    def __init__(self, total: int) -> None:
        if total < 1:
            raise ValueError(f"a queue has at least 1 place, got {total}")
        self.total = total
        self.taken = 0
        self._held: Counter[str] = Counter()
        self._claims: dict[str, _Claim] = {}

    def excess(self, tenant: str, places: int, now: float) -> int:
        """How many places must become free before the tenant may take so many; 0: now."""
        reserved = sum(self._reserved_from(tenant, places, now))
        return max(0, self.taken + places + reserved - self.total)

    def take(self, tenant: str, places: int) -> None:
        """The tenant holds so many more; its claim, if it had one, is settled."""
        self.taken += places
        self._held[tenant] += places
        self._claims.pop(tenant, None)

    def free(self, tenant: str) -> None:
        """The tenant holds one less."""
        self.taken -= 1
        self._held[tenant] -= 1
        if not self._held[tenant]:
            del self._held[tenant]

    def claim(self, tenant: str, places: int, now: float, until: float) -> None:
        """A tenant that was refused so many comes back before ``until``. Ignored when it holds its share already."""
        held = self._held.get(tenant, 0)
        if held == 0 or held + places <= self._share(tenant, now):
            self._claims[tenant] = _Claim(places, until)

    def _share(self, tenant: str, now: float) -> int:
        self._claims = {name: claim for name, claim in self._claims.items() if now < claim.until}
        others = (self._held.keys() | self._claims.keys()) - {tenant}
        return self.total // (len(others) + 1)

    def _reserved_from(self, tenant: str, places: int, now: float) -> list[int]:
        """The claims of others that come before so many more places of the tenant."""
        wants, share = self._held.get(tenant, 0) + places, self._share(tenant, now)
        older = takewhile(lambda name: name != tenant, self._claims)  # all, where the tenant has none
        claimed = [self._claims[name].places for name in older]
        return [claim for claim in claimed if claim > share or wants > share]

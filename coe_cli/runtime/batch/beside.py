"""A batch's part of the memory budget beside the running college and other batches of the same user.

What it may use is claimed before anything is loaded, and the college counts claims as taken; so whichever of them loads
next, together they stay within the budget.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from msgspec import structs

from coe_cli.core.college_status import CollegeStatus
from coe_cli.core.names import joined
from coe_cli.core.profile import HardwareProfile
from coe_cli.core.sharing import Share, WorkingSet, is_idle, share
from coe_cli.errors import CoeError
from coe_cli.runtime.server import college_client
from coe_cli.runtime.server.claims import Claim, OwnClaim, claimed_mb, claims, device_of, one_at_a_time
from coe_cli.runtime.server.neighbour import college_mb, college_on, kept

_UNLOAD_WITHIN_S = 20.0
_LOOK_EVERY_S = 0.05
_WAIT_S = 0.5


class Beside:
    """Looks at what others keep, asks the college to unload what is idle, and claims what is left until ``close``.

    ``note`` hears what a user wants to know of it, each thing once.
    """

    def __init__(self, state: Path, profile: HardwareProfile, note: Callable[[str], None]) -> None:
        self._state, self._profile, self._note = state, profile, note
        self._device = device_of(profile)
        self._pool_mb = profile.vram_budget_mb - profile.fixed_mb
        self._own = OwnClaim(state, f"`coe batch` (process {os.getpid()})", self._device, self._pool_mb)
        self._said: set[str] = set()

    def part(self, needs: WorkingSet) -> HardwareProfile:
        """The profile with the part of its budget that this process may use, as soon as there is enough of it.

        Waits while what others are at work with leaves less than ``needs.least_mb``; a second batch waits for the first.
        """
        while (room_mb := self._claim(needs)) is None:
            time.sleep(_WAIT_S)
        pool_mb = min(self._pool_mb, round(room_mb / self._profile.pressure_thresholds.high))
        return structs.replace(self._profile, vram_budget_mb=self._profile.fixed_mb + pool_mb)

    def close(self) -> None:
        """Give back what is claimed."""
        self._own.close()

    def _claim(self, needs: WorkingSet) -> float | None:
        """MB that are claimed now, or None while there is not enough."""
        with one_at_a_time(self._state):
            others = claims(self._state, self._device)
            before = college_on(self._device)
            part = self._share(needs, before, others)
            if part.unload:
                self._unload(part.unload, before)
                before = college_on(self._device)
                part = self._share(needs, before, others)
            if part.unload or part.room_mb < needs.least_mb:
                self._say(f"waiting for {needs.least_mb:.0f} MB", before, others)
                return None
            given_mb = min(needs.wanted_mb, part.room_mb)
            self._own.set(given_mb)
            # From now on the college loads nothing into that. What it began a moment ago is seen by a second look.
            if {line.name for line in college_on(self._device).models} - {line.name for line in before.models}:
                self._own.close()
                return None
        if given_mb < needs.wanted_mb:
            self._say(f"the batch has {given_mb:.0f} MB", before, others)
        return given_mb

    def _share(self, needs: WorkingSet, college: CollegeStatus, others: Sequence[Claim]) -> Share:
        thresholds, pool_mb = self._profile.pressure_thresholds, self._pool_mb
        return share(
            needs,
            college.models,
            claimed_mb(others, pool_mb),
            high_mb=thresholds.high * pool_mb,
            critical_mb=thresholds.critical * pool_mb,
            beyond_mb=max(0.0, (college.pool_mb or 0.0) - pool_mb),
        )

    def _unload(self, names: Sequence[str], college: CollegeStatus) -> None:
        """Ask the college to take idle models out, and wait until their memory is back."""
        taken = structs.replace(college, models=[line for line in college.models if line.name in names])
        idle = joined([f"`{name}`" for name in names])
        self._note(
            f"the running college takes out {idle}, idle, so that the batch has room: {college_mb(taken):.0f} MB"
        )
        with contextlib.suppress(CoeError):
            client = college_client.find()
            if client is None:
                return
            with contextlib.closing(client):
                for name in names:
                    with contextlib.suppress(CoeError):  # it has gone by itself
                        client.unload(name)
        deadline = time.monotonic() + _UNLOAD_WITHIN_S
        while time.monotonic() < deadline and any(
            line.name in names and (line.state == "evicting" or is_idle(line))
            for line in college_on(self._device).models
        ):
            time.sleep(_LOOK_EVERY_S)

    def _say(self, what: str, college: CollegeStatus, others: Sequence[Claim]) -> None:
        who = [f"{claim.by} has claimed {claim.mb:.0f} MB" for claim in others] + [kept(college)] * bool(college.models)
        message = f"{what} of {self._pool_mb}: {joined(who)}"
        if message not in self._said:
            self._said.add(message)
            self._note(message + (" (`coe stop` frees that)" if college.models else ""))

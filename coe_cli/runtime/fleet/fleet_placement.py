"""Which models to keep where: integer programs over sets of models, solved by OR-Tools CP-SAT (extra ``fleet``).

Variables: how many nodes hold each set, and which part of each expert's requests they get. Deterministic: one search
thread, a fixed seed, and a limit in deterministic time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from coe_cli.core.fleet.fleet_problem import Group, Pattern, Problem, Share, patterns
from coe_cli.errors import UsageError
from coe_cli.interrupts import interrupt_put_off
from coe_cli.package import install_command

PARTS: Final = 1000
"""Requests are shared out in so many parts."""
_WORK_UNITS: Final = 100_000
"""Utilisations are integers of 1 ÷ this."""
_STEPS: Final = 12
_DETERMINISTIC_TIME: Final = 4.0
MOST_LOAD: Final = 0.98
"""Above this utilisation a node counts as overloaded: nobody would wait for a finite time."""


def cp_model() -> Any:
    """OR-Tools' CP-SAT.

    Raises:
        UsageError: it is not installed; the hint says how to.
    """
    try:
        with interrupt_put_off():  # it makes an ImportError of an interrupt
            from ortools.sat.python import cp_model as module
    except ImportError:
        raise UsageError("planning a fleet needs OR-Tools", f"Install it: {install_command('fleet')}") from None
    return module


class Placement:
    """Solves one problem for fleets of several sizes."""

    def __init__(self, problem: Problem) -> None:
        self._cp = cp_model()
        self._problem = problem
        self._patterns = patterns(problem.kinds, problem.demand)

    def for_counts(self, counts: Sequence[int]) -> list[Group]:
        """The best use of ``counts`` nodes of each kind: no swaps if that can be, then the busiest node least busy.

        An overloaded fleet gets the placement that is least so.
        """
        excess_mb = self._least_excess_mb(counts, MOST_LOAD)
        low, high = 0.0, MOST_LOAD
        if excess_mb is None:
            while excess_mb is None:
                low, high = high, high * 2
                excess_mb = self._least_excess_mb(counts, high)
        best = self._solve(counts, high, excess_mb)
        assert best is not None
        for _ in range(_STEPS):
            middle = (low + high) / 2
            found = self._solve(counts, middle, excess_mb)
            if found is None:
                low = middle
            else:
                high, best = middle, found
        tidy = self._solve(counts, high, excess_mb, tidy=True)
        return tidy or best

    def for_price(self, price: int, most: Sequence[int]) -> tuple[list[int], list[Group]] | None:
        """Counts of each kind that cost ``price`` at most in all, and their best use; None when that is overloaded."""
        if self._solve(most, MOST_LOAD, None, price=price, swaps=False) is None:
            return None
        low, high = 0.0, MOST_LOAD
        for _ in range(_STEPS):
            middle = (low + high) / 2
            if self._solve(most, middle, None, price=price, swaps=False) is None:
                low = middle
            else:
                high = middle
        found = self._solve(most, high, None, price=price, swaps=False, tidy=True)
        assert found is not None
        counts = [sum(group.count for group in found if group.kind == kind) for kind in range(len(most))]
        return counts, found

    def least_price(self, most: Sequence[int]) -> int | None:
        """What the cheapest fleet costs that serves all without swaps and is not overloaded; None if none does."""
        model, nodes, _ = self._model(most, MOST_LOAD, swaps=False)
        prices = [self._problem.kinds[p.kind].node.type.price for p in self._patterns]
        model.minimize(sum(n * price for n, price in zip(nodes, prices, strict=True)))
        solver = self._run(model)
        return None if solver is None else round(solver.objective_value)

    def _least_excess_mb(self, counts: Sequence[int], load: float) -> int | None:
        if self._solve(counts, load, 0) is not None:
            return 0
        model, nodes, _ = self._model(counts, load)
        model.minimize(self._excess(nodes))
        solver = self._run(model)
        return None if solver is None else round(solver.objective_value)

    def _excess(self, nodes: list[Any]) -> Any:
        return sum(n * round(p.excess_mb) for n, p in zip(nodes, self._patterns, strict=True) if p.excess_mb)

    def _solve(
        self,
        counts: Sequence[int],
        load: float,
        excess_mb: int | None,
        *,
        price: int | None = None,
        swaps: bool = True,
        tidy: bool = False,
    ) -> list[Group] | None:
        model, nodes, shares = self._model(counts, load, swaps=swaps and excess_mb != 0)
        if excess_mb:
            model.add(self._excess(nodes) <= excess_mb)
        if price is not None:
            prices = [self._problem.kinds[p.kind].node.type.price for p in self._patterns]
            model.add(sum(n * each for n, each in zip(nodes, prices, strict=True)) <= price)
        if tidy:  # as few places as can be for each expert
            used = []
            for share in (share for row in shares for share in row.values()):
                flag = model.new_bool_var("")
                model.add(share <= PARTS * flag)
                used.append(flag)
            model.minimize(sum(used))
        solver = self._run(model)
        if solver is None:
            return None
        found = []
        for pattern, count, row in zip(self._patterns, nodes, shares, strict=True):
            parts = {expert: solver.value(share) for expert, share in row.items()}
            if solver.value(count):
                found.append(self._group(pattern, solver.value(count), parts))
        return [group for group in found if group.shares]

    def _group(self, pattern: Pattern, count: int, parts: dict[str, int]) -> Group:
        kind = self._problem.kinds[pattern.kind]
        shares = tuple(Share(expert, part / PARTS) for expert, part in parts.items() if part)
        asked = {kind.answering[share.expert] for share in shares}
        models = tuple(name for name in pattern.models if name in asked)
        return Group(pattern.kind, count, models, kind.excess_mb(models), shares)

    def _model(self, counts: Sequence[int], load: float, *, swaps: bool = True) -> tuple[Any, list[Any], list[Any]]:
        problem = self._problem
        model = self._cp.CpModel()
        nodes = [model.new_int_var(0, counts[p.kind] if swaps or not p.excess_mb else 0, "") for p in self._patterns]
        shares: list[dict[str, Any]] = []
        for pattern, count in zip(self._patterns, nodes, strict=True):
            kind = problem.kinds[pattern.kind]
            row = {
                expert: model.new_int_var(0, PARTS, "")
                for expert in problem.demand
                if kind.answering.get(expert) in pattern.models
            }
            for share in row.values():
                model.add(share <= PARTS * count)
            work = [
                share * round(demand.requests_per_s * kind.work_s(expert, demand) * _WORK_UNITS)
                for expert, share in row.items()
                for demand in (problem.demand[expert],)
            ]
            room = round(load * kind.speed(len(pattern.models)) * _WORK_UNITS)
            model.add(sum(work) <= count * room * PARTS)
            shares.append(row)
        for expert in problem.demand:
            model.add(sum(row[expert] for row in shares if expert in row) == PARTS)
        for kind_index, most in enumerate(counts):
            model.add(sum(n for n, p in zip(nodes, self._patterns, strict=True) if p.kind == kind_index) <= most)
        return model, nodes, shares

    def _run(self, model: Any) -> Any | None:
        solver = self._cp.CpSolver()
        solver.parameters.num_workers = 1
        solver.parameters.random_seed = 1
        solver.parameters.max_deterministic_time = _DETERMINISTIC_TIME
        solver.parameters.catch_sigint_signal = False  # after it, Ctrl-C would end this process and not its children
        status = solver.solve(model)
        return solver if status in (self._cp.OPTIMAL, self._cp.FEASIBLE) else None

"""Does a profile suit this machine and these models: one finding a question, each with what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from coe_cli.core.findings import Finding, Level, error, ok, warning, worst
from coe_cli.core.hardware.machine import Machine, card_mb, free_mb
from coe_cli.core.hardware.profile import HardwareProfile
from coe_cli.core.memory.calibration import Calibration
from coe_cli.core.memory.planner import Plan
from coe_cli.core.names import compared_sizes, counted, size_words
from coe_cli.core.providers import spec_of

DAY_S: Final = 86_400
STALE_DAYS: Final = 90
KEEP_SMALL: Final = "Close other programs, and keep to small models: coe setup --dry-run names them"


class ModelState(Struct, frozen=True):
    """What is known of one model's files. ``fetch_mb`` is what a download needs, None when nobody knows; ``hint`` what
    to do about ``problem``; ``has_room`` whether it would run here, ``runs`` whether it does in the profile's budget."""

    name: str
    experts: tuple[str, ...]
    context_length: int
    on_disk: bool
    problem: str | None = None
    fetch_mb: float | None = None
    calibration: Calibration | None = None
    hint: str = ""
    has_room: bool = True
    runs: bool = True


class CheckReport(Struct, frozen=True):
    """``reason`` says why the profile was taken when the machine chose it, else it is empty."""

    profile: HardwareProfile
    reason: str
    machine: Machine
    findings: list[Finding]

    @property
    def passed(self) -> bool:
        return worst(self.findings) is not Level.ERROR


def check_profile(
    profile: HardwareProfile,
    machine: Machine,
    models: Sequence[ModelState],
    plan: Plan,
    *,
    disk_free_mb: float | None,
    now_s: float,
) -> list[Finding]:
    """All findings in the order in which they matter: card, other programs, plan, models, contexts, disk, measurements."""
    return [
        *(warning("probe", each, "See `coe doctor`; what is unknown is not guessed.") for each in machine.problems),
        _card(profile, machine),
        _other_programs(profile, machine),
        _plan(plan, models),
        *(_model(state) for state in models),
        *_contexts(profile, models),
        _disk(models, disk_free_mb),
        _calibration(models, now_s),
    ]


def _card(profile: HardwareProfile, machine: Machine) -> Finding:
    budget, size = profile.vram_budget_mb, card_mb(machine, profile.provider)
    what = "graphics memory" if spec_of(profile.provider).on_card else "system memory"
    another = "Choose a profile for this machine: coe profile check --auto"
    if not spec_of(profile.provider).on_card:
        another = KEEP_SMALL
    if size is None and machine.gpu_known and not machine.adapters:
        return error("card", f"{what}: no graphics adapter was found", another)
    if size is None:
        return warning("card", f"{what}: its size is unknown", another)
    planned, there = compared_sizes(budget, size)
    if budget > size:
        return error("card", f"the budget of {planned} is more than the {there} of {what}", another)
    margin = profile.auto_detect.safety_margin
    if budget > size * margin:
        above = f"the budget of {planned} is above {margin:.0%} of the {there} of {what}"
        return warning("card", above, f"Lower vram_budget_mb to {size * margin:.0f}.")
    return ok("card", f"{there} of {what} for a budget of {planned}")


def _other_programs(profile: HardwareProfile, machine: Machine) -> Finding:
    free, needed = free_mb(machine, profile.provider), profile.vram_budget_mb - profile.fixed_mb
    if free is None:
        return warning("in_use", "what other programs use is unknown", "Close programs that draw a lot.")
    left, wanted = compared_sizes(free, needed)
    if free < needed:
        return warning(
            "in_use",
            f"other programs leave {left}, the profile's models may take {wanted}",
            "Close programs that use the card, or choose a smaller profile.",
        )
    return ok("in_use", f"other programs leave {left}")


def _plan(plan: Plan, models: Sequence[ModelState]) -> Finding:
    slots = counted(len(plan.slots), "slot")
    text = f"{size_words(plan.total_mb)} for {slots}"
    said = {each.code: each.message for each in plan.warnings}
    if not plan.fits:
        fix = f"{said.get('does_not_fit', '')}: coe vram plan"
        if any(state.runs for state in models):
            return warning("plan", f"{text}, more than there is at once: they take turns", fix)
        return error("plan", text, fix)
    text += f", pressure {plan.pressure.level}"
    if "above_admission" in said:
        return warning("plan", text, f"{said['above_admission']}: coe vram plan")
    return ok("plan", text)


def _model(state: ModelState) -> Finding:
    users = f" ({', '.join(state.experts)})" if state.experts else ""
    if state.problem is not None:
        return error("model", state.problem, state.hint)
    if not state.on_disk and not state.has_room:
        told = f"{state.name} is not on disk and has no room here{users}"
        return warning("model", told, "What suits this machine: coe setup --dry-run")
    if not state.on_disk:
        return warning("model", f"{state.name} is not on disk{users}", f"coe models pull {state.name}")
    return ok("model", f"{state.name} is on disk{users}")


def _contexts(profile: HardwareProfile, models: Sequence[ModelState]) -> list[Finding]:
    return [
        warning(
            "context",
            f"{state.name} ends at {state.context_length} tokens, the profile's slots have {profile.context_length}",
            f"Set context_length to {state.context_length}, or plan its experts with --context {state.context_length}.",
        )
        for state in models
        if state.context_length < profile.context_length
    ]


def _disk(models: Sequence[ModelState], disk_free_mb: float | None) -> Finding:
    missing = [state for state in models if not state.on_disk and state.has_room]
    if not missing:
        return ok("disk", "nothing has to be fetched")
    if disk_free_mb is None or any(state.fetch_mb is None for state in missing):
        return warning(
            "disk", "whether the disk has room for the missing models is unknown", "Look before you pull them."
        )
    needed = sum(state.fetch_mb or 0.0 for state in missing)
    if needed > disk_free_mb:
        return error(
            "disk",
            f"the missing models need {size_words(needed)}, the disk has {size_words(disk_free_mb)}",
            "Make room, or set COE_MODELS_DIR to a folder on another disk.",
        )
    return ok("disk", f"{size_words(disk_free_mb)} free, the missing models need {size_words(needed)}")


def _calibration(models: Sequence[ModelState], now_s: float) -> Finding:
    measured = [state.calibration for state in models if state.calibration is not None]
    if not measured:
        return ok("calibration", "no measurements yet: the plan is computed, the first runs will check it")
    days = max(0, round((now_s - min(item.newest_at_s for item in measured)) / DAY_S))
    worst = max((abs(item.error) for item in measured if item.error is not None), default=0.0)
    text = f"{len(measured)} of {len(models)} models measured, the oldest {counted(days, 'day')} ago, off by {worst:.1%} at most"
    if days > STALE_DAYS:
        return warning("calibration", text, "It renews itself with the next runs.")
    return ok("calibration", text)

"""The scheduler's rules, one table of events each. The pool is 10000 MB: elevated 8000, high 9000, critical above 9500."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest

from coe_cli.core.hardware.profile import PressureThresholds
from coe_cli.core.scheduling.pool_memory import PoolMemory
from coe_cli.core.scheduling.scheduler import Scheduler
from coe_cli.core.scheduling.scheduler_events import (
    Cancelled,
    Decision,
    Done,
    Drain,
    Event,
    Evict,
    Evicted,
    Expected,
    Load,
    Loaded,
    LoadFailed,
    MeasuredUsage,
    Notice,
    Preload,
    Refuse,
    Request,
    Retry,
    Start,
    Stop,
    Tick,
    Tokens,
    Unload,
    Wait,
    WorkerDied,
)
from coe_cli.core.scheduling.scheduler_state import ModelCost, ModelStatus, PoolConfig, pool_from_profile
from coe_cli.errors import DoesNotFit
from coe_cli.runtime.settings import load_profiles


def scheduler(costs: Mapping[str, tuple[float, float] | ModelCost], **config: object) -> Scheduler:
    """Costs are (weights, one slot) in MB with 4 slots, or a ModelCost."""
    settings: dict[str, object] = {"vram_budget_mb": 12_000, "fixed_mb": 2_000, "max_concurrent_slots": 4, **config}
    models = {
        name: cost if isinstance(cost, ModelCost) else ModelCost(weights_mb=cost[0], kv_mb=cost[1], max_slots=4)
        for name, cost in costs.items()
    }
    return Scheduler(PoolConfig(**settings), models)  # type: ignore[arg-type]


def feed(target: Scheduler, now_s: float, *events: Event, notices: bool = False) -> list[Decision]:
    decisions = [decision for event in events for decision in target.handle(event, now_s)]
    return decisions if notices else [decision for decision in decisions if not isinstance(decision, Notice)]


def kinds(decisions: list[Decision]) -> list[str]:
    return [type(decision).__name__ for decision in decisions]


def model(target: Scheduler, name: str) -> ModelStatus:
    return next(status for status in target.snapshot().models if status.name == name)


def loaded(target: Scheduler, *names: str, at_s: float = 0.0) -> None:
    """Make models loaded and idle, each after one short request."""
    for name in names:
        assert Load(name) in feed(target, at_s, Request(f"warm-{name}", name))
        assert feed(target, at_s, Loaded(name)) == [Start(f"warm-{name}", name)]
        assert feed(target, at_s, Done(f"warm-{name}")) == []


# --- admission


def test_idle_models_count_with_every_slot_that_they_hold() -> None:
    s = scheduler({"a": (3000, 900), "b": (4300, 500)})
    feed(s, 0, Request(1, "a"), Request(2, "a"))
    assert kinds(feed(s, 1, Loaded("a"))) == ["Start", "Start"]
    feed(s, 2, Done(1), Done(2))
    assert (model(s, "a").held_mb, s.snapshot().usage_mb) == (4800, 4800)
    assert feed(s, 3, Request(3, "b"))[0] == Evict("a", "room"), "both would hold 9600 of the 9500 MB"
    assert feed(s, 4, Evicted("a")) == [Load("b")]


def test_a_request_loads_its_model_runs_and_leaves_it_resident() -> None:
    s = scheduler({"a": (5000, 500)})
    assert feed(s, 0, Request(1, "a")) == [Load("a"), Wait(1, "a", "loading", 0)]
    assert s.snapshot().reserved_mb == 5500  # the first slot's room is kept during the load
    assert feed(s, 2, Loaded("a")) == [Start(1, "a", 1)]
    assert s.snapshot().reserved_mb == 5500
    assert feed(s, 3, Tokens(1), Done(1)) == []
    assert (s.snapshot().reserved_mb, s.snapshot().usage_mb) == (5500, 5500)  # the slot keeps its memory
    assert (model(s, "a").state, model(s, "a").reserved_mb) == ("ready", 5000)
    assert feed(s, 4, Request(2, "a")) == [Start(2, "a", 1)]


def test_requests_of_one_model_share_its_weights() -> None:
    s = scheduler({"a": (5000, 500)})
    feed(s, 0, Request(1, "a"), Request(2, "a"), Request(3, "a"))
    assert feed(s, 1, Loaded("a")) == [Start(1, "a"), Start(2, "a"), Start(3, "a")]
    assert s.snapshot().reserved_mb == 5000 + 3 * 500


def test_loads_are_serialised() -> None:
    s = scheduler({"a": (3000, 300), "b": (3000, 300)})
    assert feed(s, 0, Request(1, "a"), Request(2, "b")) == [
        Load("a"),
        Wait(1, "a", "loading", 0),
        Wait(2, "b", "queue", 1),
    ]
    assert feed(s, 1, Loaded("a")) == [Start(1, "a"), Load("b")]


def test_the_concurrency_limit_counts_running_generations() -> None:
    s = scheduler({"a": (1000, 100), "b": (1000, 100)}, max_concurrent_slots=2)
    loaded(s, "a", "b")
    assert kinds(feed(s, 1, Request(1, "a"), Request(2, "b"), Request(3, "a"))) == ["Start", "Start", "Wait"]
    assert feed(s, 2, Done(2)) == [Start(3, "a")]


def test_a_model_runs_no_more_than_its_own_slots() -> None:
    s = scheduler({"a": ModelCost(1000, 100, max_slots=1)})
    loaded(s, "a")
    assert feed(s, 1, Request(1, "a"), Request(2, "a")) == [Start(1, "a"), Wait(2, "a", "slots", 0)]
    assert feed(s, 2, Done(1)) == [Start(2, "a")]


def test_who_still_waits_after_a_load_is_told_what_for() -> None:
    s = scheduler({"a": ModelCost(1000, 100, max_slots=1), "b": (1000, 100)})
    feed(s, 1, Request(1, "a"), Request(2, "a"), Request(3, "b"), Request(4, "a"), Request(5, "a", 9))
    feed(s, 1, Cancelled(2))
    assert s.waits("a") == [Wait(5, "a", "loading", 0), Wait(1, "a", "loading", 1), Wait(4, "a", "loading", 2)]
    assert Start(5, "a") in feed(s, 2, Loaded("a"))
    assert s.waits("a") == [Wait(1, "a", "slots", 0), Wait(4, "a", "slots", 1)]
    assert s.waits("b") == [Wait(3, "b", "loading", 0)]


def test_what_can_never_fit_is_refused_at_once_with_the_numbers() -> None:
    s = scheduler({"big": (9000, 501), "fits": (9000, 500)})
    (refusal,) = feed(s, 0, Request(1, "big"))
    assert isinstance(refusal, Refuse)
    assert (refusal.code, refusal.retry_after_s) == ("does_not_fit", None)
    for number in ("9,501 MB", "8.8 GB weights", "501 MB", "most 9,500 MB", "11.7 GB", "2 GB"):
        assert number in refusal.message
    assert kinds(feed(s, 0, Request(2, "fits"))) == ["Load", "Wait"]


def test_a_model_that_takes_most_of_the_pool_runs_on_an_empty_card() -> None:
    s = scheduler({"a": (8500, 800)})
    feed(s, 0, Request(1, "a"))
    assert feed(s, 1, Loaded("a", used_mb=8500)) == [Start(1, "a")]
    feed(s, 2, MeasuredUsage(9300))
    assert s.snapshot().level == "high"
    feed(s, 3, Done(1))
    assert feed(s, 4, Request(2, "a")) == [Start(2, "a")]  # its warm slot is in the measurement already


def test_an_unknown_model_and_a_full_queue_are_refused() -> None:
    s = scheduler({"a": (5000, 500)}, max_queue=2)
    (unknown,) = feed(s, 0, Request(0, "x"))
    assert isinstance(unknown, Refuse)
    assert unknown.code == "model_missing"
    feed(s, 0, Request(1, "a"), Request(2, "a"))
    (full,) = feed(s, 0, Request(3, "a"))
    assert isinstance(full, Refuse)
    assert full.code == "queue_full"
    assert full.retry_after_s is not None
    assert full.retry_after_s >= 1


def test_an_id_in_use_and_time_running_backwards_are_errors() -> None:
    s = scheduler({"a": (5000, 500)})
    feed(s, 5, Request(1, "a"))
    with pytest.raises(ValueError, match="not finished"):
        s.handle(Request(1, "a"), 5)
    with pytest.raises(ValueError, match="backwards"):
        s.handle(Tick(), 4)


def test_a_pool_whose_fixed_part_leaves_nothing_does_not_fit() -> None:
    with pytest.raises(DoesNotFit, match=r"11\.7 of 11\.7 GB are fixed"):
        scheduler({}, fixed_mb=12_000)


@pytest.mark.parametrize("bad", [{"max_concurrent_slots": 0}, {"max_queue": 0}])
def test_a_pool_without_slots_or_queue_is_an_error(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="a pool needs"):
        scheduler({}, **bad)


# --- pressure


def test_levels_rise_at_their_threshold_and_fall_0_02_below_it() -> None:
    memory = PoolMemory(1000, PressureThresholds())
    seen = []
    for used_mb in (799, 800, 781, 779, 900, 881, 879, 950, 951, 931, 929, 100, 960):
        memory.measure(used_mb)
        memory.refresh()
        seen.append(memory.level.name)
    assert seen == [
        *["NORMAL", "ELEVATED", "ELEVATED", "NORMAL"],
        *["HIGH", "HIGH", "ELEVATED"],
        *["HIGH", "CRITICAL", "CRITICAL", "HIGH"],
        *["NORMAL", "CRITICAL"],
    ]


def test_usage_is_the_larger_of_held_and_measured() -> None:
    s = scheduler({"a": (5000, 500)})
    loaded(s, "a")
    assert s.snapshot().measured_mb is None
    feed(s, 1, MeasuredUsage(3000))
    assert s.snapshot().usage_mb == 5500
    feed(s, 2, MeasuredUsage(7000))
    assert s.snapshot().usage_mb == 7000
    assert s.snapshot().pressure == 0.7


def test_nothing_more_starts_at_high_pressure() -> None:
    s = scheduler({"a": (5000, 100)})
    loaded(s, "a")
    feed(s, 1, Request(1, "a"))
    (notice,) = feed(s, 2, MeasuredUsage(9100), notices=True)
    assert notice == Notice("pressure", "memory pressure is high: 8.9 of 9.8 GB")
    assert feed(s, 3, Request(2, "a")) == [Wait(2, "a", "pressure", 0)]
    assert feed(s, 4, MeasuredUsage(8850)) == []  # still high: 8800 is where it falls back
    assert feed(s, 5, MeasuredUsage(8700)) == [Start(2, "a")]


def test_at_high_pressure_one_request_runs_when_nothing_else_does() -> None:
    s = scheduler({"a": (5000, 100)})
    loaded(s, "a")
    feed(s, 1, MeasuredUsage(9100))
    assert kinds(feed(s, 2, Request(1, "a"), Request(2, "a"))) == ["Start", "Wait"]
    assert feed(s, 3, Done(1)) == [Start(2, "a")]


def test_no_start_brings_the_pool_to_high_beside_other_work() -> None:
    s = scheduler({"a": (5000, 1000)})
    loaded(s, "a")
    # 5000 + 4 slots would be 9000, which is high
    assert kinds(feed(s, 1, *(Request(i, "a") for i in range(4)))) == ["Start"] * 3 + ["Wait"]
    assert s.snapshot().level == "elevated"


def test_a_load_counts_its_first_slot_so_that_its_start_adds_nothing() -> None:
    s = scheduler({"a": (5000, 1000)})
    feed(s, 0, Request(1, "a"), MeasuredUsage(8500))
    assert s.snapshot().usage_mb == 8500
    feed(s, 1, Loaded("a", used_mb=8501))
    assert s.snapshot().usage_mb == 8501
    assert s.snapshot().running == 1


def test_no_load_reaches_critical_by_its_own_reservation_even_alone() -> None:
    s = scheduler({"a": (5000, 1000)})
    feed(s, 0, MeasuredUsage(3501))
    assert kinds(feed(s, 1, Request(1, "a"))) == ["Wait"]
    assert feed(s, 2, MeasuredUsage(3500)) == [Load("a")]


def test_memory_measured_in_mid_load_does_not_make_room() -> None:
    s = scheduler({"a": (1000, 100), "b": (4000, 100)})
    loaded(s, "a")
    feed(s, 1, MeasuredUsage(4800))  # 3700 of it are another program's
    feed(s, 2, Request(1, "b"))
    assert s.snapshot().usage_mb == 8900
    feed(s, 3, MeasuredUsage(4900))  # the load has only begun
    assert s.snapshot().usage_mb == 8900
    feed(s, 4, Loaded("b", used_mb=8850))
    assert s.snapshot().usage_mb == 8850


# --- critical


def test_critical_evicts_the_largest_consumer_even_when_it_runs() -> None:
    s = scheduler({"small": (2000, 100), "large": (4000, 100)})
    loaded(s, "small", "large")
    feed(s, 1, Request(1, "large"), Request(2, "small"))
    assert feed(s, 2, MeasuredUsage(9600)) == [
        Evict("large", "critical"),
        Retry(1, 7.0, "evicted under critical memory pressure"),
    ]
    assert feed(s, 3, MeasuredUsage(9600)) == []  # one at a time
    assert feed(s, 4, Evicted("large", 5100, 4500)) == []
    assert s.next_wakeup_s() == 7.0
    assert feed(s, 7, Tick()) == [Load("large")]
    assert feed(s, 8, Loaded("large", 9600)) == [Evict("large", "critical")]


def test_a_request_with_delivered_tokens_fails_when_it_is_evicted() -> None:
    s = scheduler({"a": (5000, 100)})
    loaded(s, "a")
    feed(s, 1, Request(1, "a"), Request(2, "a"), Tokens(1, 3))
    evict, refusal, retry = feed(s, 2, MeasuredUsage(9600))
    assert evict == Evict("a", "critical")
    assert isinstance(refusal, Refuse)
    assert (refusal.request_id, refusal.code) == (1, "out_of_memory")
    assert isinstance(retry, Retry)
    assert retry.request_id == 2


def test_a_guided_request_is_not_started_again_after_a_critical_eviction() -> None:
    s = scheduler({"a": (5000, 100)})
    loaded(s, "a")
    feed(s, 1, Request(1, "a", guided=True), Request(2, "a"))
    evict, refusal, retry = feed(s, 2, MeasuredUsage(9600))
    assert evict == Evict("a", "critical")
    assert isinstance(refusal, Refuse) and (refusal.request_id, refusal.code) == (1, "out_of_memory")
    assert isinstance(retry, Retry) and retry.request_id == 2


def test_critical_takes_the_next_largest_when_the_first_was_not_enough() -> None:
    s = scheduler({"small": (2000, 100), "large": (4000, 100)})
    loaded(s, "small", "large")
    feed(s, 1, MeasuredUsage(9900))
    assert feed(s, 2, Evicted("large", 300, 9600)) == [Evict("small", "critical")]
    assert feed(s, 3, Evicted("small", 2100, 7500)) == []


def test_the_policy_may_name_the_largest_cache() -> None:
    costs = {"heavy": (4000.0, 100.0), "cached": (2000.0, 1000.0)}
    for target, victim in (("largest_consumer", "heavy"), ("largest_kv_cache", "cached")):
        s = scheduler(costs, target=target)
        loaded(s, *costs)
        assert feed(s, 1, MeasuredUsage(9600)) == [Evict(victim, "critical")]


def test_a_request_is_not_evicted_and_retried_for_ever() -> None:
    s = scheduler({"a": (5000, 100)}, max_evictions=2)
    feed(s, 0, Request(1, "a"))
    now_s, starts = 0.0, 0
    for _ in range(10):
        starts += feed(s, now_s, Loaded("a", 5000)).count(Start(1, "a", starts + 1))
        end = feed(s, now_s, MeasuredUsage(9600))[1]
        feed(s, now_s, Evicted("a", 9600, 0))
        if isinstance(end, Refuse):
            break
        now_s += 5
        feed(s, now_s, Tick())
    assert isinstance(end, Refuse)
    assert end.code == "out_of_memory"
    assert starts == 3


# --- eviction for room


def test_the_longest_idle_per_second_of_load_goes_first() -> None:
    costs = {
        "cheap": ModelCost(3000, 100, load_s=1),
        "dear": ModelCost(3000, 100, load_s=10),
        "new": ModelCost(4000, 100),
    }
    s = scheduler(costs)
    loaded(s, "dear", at_s=0)
    loaded(s, "cheap", at_s=60)
    # dear was idle 120 s but costs 10 s to load again, cheap 60 s at 1 s
    assert feed(s, 120, Request(1, "new")) == [Evict("cheap", "room"), Wait(1, "new", "evicting", 0)]
    assert feed(s, 121, Evicted("cheap")) == [Load("new")]


def test_no_more_is_evicted_than_is_needed() -> None:
    s = scheduler({"a": (1000, 100), "b": (6000, 100), "new": (7000, 100)})
    loaded(s, "a", at_s=0)
    loaded(s, "b", at_s=10)
    # in order a and then b would go; b alone is enough
    assert kinds(feed(s, 100, Request(1, "new"))) == ["Evict", "Wait"]
    assert model(s, "b").state == "evicting"
    assert model(s, "a").state == "ready"


def test_an_idle_model_goes_at_once_for_one_that_is_asked_for() -> None:
    s = scheduler({"a": (6000, 100), "b": (6000, 100)})
    loaded(s, "a", at_s=1)
    assert feed(s, 2, Request(1, "b")) == [Evict("a", "room"), Wait(1, "b", "evicting", 0)]
    assert feed(s, 3, Evicted("a")) == [Load("b")]


def test_a_young_model_that_is_waited_for_stays_until_it_is_old_enough() -> None:
    """Else two models that are asked for in turn would drive each other out at every request."""
    s = scheduler({"a": (6000, 100), "b": (6000, 100), "c": (100, 100)}, max_concurrent_slots=1, max_bypasses=0)
    loaded(s, "c", at_s=0)
    loaded(s, "a", at_s=10)
    assert feed(s, 20, Request("c", "c")) == [Start("c", "c")]
    assert kinds(feed(s, 21, Request("a", "a"), Request("b", "b", priority=5))) == ["Wait", "Wait"]
    assert feed(s, 69.9, Tick()) == []
    assert model(s, "a").state == "ready"
    assert s.next_wakeup_s() == 70
    assert feed(s, 70, Tick()) == [Evict("a", "room")]


def test_a_running_model_is_not_evicted_for_room() -> None:
    s = scheduler({"a": (6000, 100), "b": (6000, 100)})
    loaded(s, "a")
    feed(s, 100, Request(1, "a"))
    assert feed(s, 101, Request(2, "b")) == [Wait(2, "b", "memory", 0)]
    assert feed(s, 500, Tick()) == []
    assert feed(s, 501, Done(1)) == [Evict("a", "room")]


def test_a_shortfall_is_reported_and_kept_out_of_the_budget_until_it_is_back() -> None:
    s = scheduler({"a": (5000, 100), "b": (5900, 100)})
    loaded(s, "a")
    feed(s, 60, Request(1, "b"))
    (notice, *_) = feed(s, 61, Evicted("a", reclaimed_mb=3100), notices=True)
    assert notice == Notice("shortfall", "evicting `a` reclaimed 3.0 of 5 GB; 2 GB are kept out of the budget")
    assert s.snapshot().lost_mb == 2000
    assert model(s, "b").state == "loading"  # alone it may go up to 9500
    feed(s, 62, Loaded("b"), Done(1))
    notice, *_ = feed(s, 63, MeasuredUsage(6000), notices=True)
    assert notice == Notice("reclaimed", "2 GB of evicted models are back")
    assert s.snapshot().lost_mb == 0


def test_a_shortfall_takes_room_from_the_next_load() -> None:
    s = scheduler({"a": (5000, 100), "b": (6000, 100)}, give_up_s=30.0)
    loaded(s, "a")
    feed(s, 60, Request(1, "b"))
    assert feed(s, 61, Evicted("a", reclaimed_mb=1000)) == []  # 4100 lost and 6100 needed
    assert s.next_wakeup_s() == 91
    (refusal,) = feed(s, 91, Tick())
    assert isinstance(refusal, Refuse)
    assert (refusal.code, refusal.retry_after_s) == ("out_of_memory", 30.0)


def test_a_plan_that_was_too_high_is_no_shortfall() -> None:
    s = scheduler({"a": (5000, 100)})
    loaded(s, "a")
    feed(s, 60, Unload("a"))
    assert feed(s, 61, Evicted("a", reclaimed_mb=4000, used_mb=0), notices=True) == []
    assert s.snapshot().lost_mb == 0


def test_memory_that_others_hold_delays_a_request_and_then_refuses_it() -> None:
    s = scheduler({"a": (5000, 100), "small": (500, 100)})
    feed(s, 0, MeasuredUsage(5000))
    assert kinds(feed(s, 1, Request(1, "a"), Request(2, "small"))) == ["Wait", "Load", "Wait"]
    assert feed(s, 2, Loaded("small", 5500)) == [Start(2, "small")]
    assert kinds(feed(s, 31, Tick())) == ["Refuse"]
    feed(s, 32, Request(3, "a"))
    assert feed(s, 33, MeasuredUsage(1000)) == [Load("a")]  # the memory is back in time


# --- order


def test_fifo_within_a_priority_and_ageing_between_them() -> None:
    s = scheduler({"a": ModelCost(1000, 100)}, max_concurrent_slots=1, priority_step_s=10.0)
    loaded(s, "a")
    feed(s, 0, Request("running", "a"))
    feed(s, 1, Request("old", "a", priority=0))
    feed(s, 2, Request("urgent", "a", priority=1))
    feed(s, 3, Request("urgent-later", "a", priority=1))
    feed(s, 12, Request("urgent-too-late", "a", priority=1))
    order, last = [], "running"
    for now_s in range(20, 24):
        (start,) = feed(s, now_s, Done(last))
        assert isinstance(start, Start)
        order.append(last := str(start.request_id))
    assert order == ["urgent", "urgent-later", "old", "urgent-too-late"]


@pytest.mark.parametrize(("limits", "bypassing"), [({"max_bypasses": 3}, 3), ({"max_bypass_s": 2.5}, 2)])
def test_small_requests_overtake_a_big_one_only_so_often(limits: dict[str, float], bypassing: int) -> None:
    s = scheduler({"small": (2000, 100), "big": (8000, 100)}, max_concurrent_slots=2, **limits)
    loaded(s, "small")
    feed(s, 60, Request(0, "small"))
    feed(s, 60, Request("big", "big"))
    started, last, now_s = 0, 0, 60.0
    for i in range(1, 30):
        now_s += 1
        decisions = feed(s, now_s, Request(i, "small"), Done(last))
        last = i
        started += sum(isinstance(decision, Start) for decision in decisions)
        if Evict("small", "room") in decisions:
            break
    assert started == bypassing
    feed(s, now_s, Evicted("small"))
    assert feed(s, now_s, Loaded("big")) == [Start("big", "big")]


def test_of_two_requests_with_one_key_the_first_to_come_goes_first() -> None:
    s = scheduler({"a": ModelCost(8500, 100, max_slots=1), "b": (6000, 100)}, min_residency_s=0.0)
    feed(s, 0, Request(1, "a"), Loaded("a"), Request(2, "b", priority=-1))
    feed(s, 10, Request(3, "a"))  # the key of 2, and 2 was bypassed long enough
    assert feed(s, 10, Done(1)) == [Evict("a", "room")]


def test_nothing_is_held_back_for_a_model_that_waits_for_a_young_one() -> None:
    s = scheduler({"a": (6000, 100), "b": (6000, 100)}, max_bypasses=0, max_concurrent_slots=1)
    loaded(s, "a", at_s=0)
    feed(s, 1, Request(0, "a"), Request("b", "b"))
    for i in range(20):
        feed(s, 2 + i, Request(i + 1, "a"))
        assert feed(s, 2 + i, Done(i)) == [Start(i + 1, "a")]
    feed(s, 60, Request(21, "a"))
    assert feed(s, 60, Done(20)) == [Evict("a", "room")]


def test_memory_for_loads_is_given_out_in_order() -> None:
    s = scheduler({"a": (5000, 100), "big": (8000, 100), "tiny": (500, 100)})
    loaded(s, "a")
    assert feed(s, 1, Request("big", "big")) == [Evict("a", "room"), Wait("big", "big", "evicting", 0)]
    assert feed(s, 2, Request("tiny", "tiny")) == [Wait("tiny", "tiny", "evicting", 1)]
    assert feed(s, 61, Evicted("a")) == [Load("big")]


# --- failures


def test_out_of_memory_on_load_evicts_the_idle_retries_once_and_refuses() -> None:
    s = scheduler({"a": (2000, 100), "b": (2000, 100), "new": (3000, 100)})
    loaded(s, "a", "b")
    feed(s, 60, Request(1, "new"), Request(2, "new"))
    failed = feed(s, 61, LoadFailed("new", "out_of_memory"))
    assert failed == [Evict("a", "out_of_memory"), Evict("b", "out_of_memory")]
    assert feed(s, 62, Evicted("a")) == []
    assert feed(s, 63, Evicted("b")) == [Load("new")]
    refusals = feed(s, 64, LoadFailed("new", "out_of_memory", "CUDA out of memory"))
    assert [(r.request_id, r.code, r.message) for r in refusals if isinstance(r, Refuse)] == [
        (1, "out_of_memory", "CUDA out of memory"),
        (2, "out_of_memory", "CUDA out of memory"),
    ]
    assert s.snapshot().reserved_mb == 0


def test_out_of_memory_with_nothing_idle_waits_before_the_retry() -> None:
    s = scheduler({"a": (2000, 100)})
    feed(s, 0, Request(1, "a"))
    assert feed(s, 1, LoadFailed("a", "out_of_memory")) == []
    assert s.next_wakeup_s() == 6
    assert feed(s, 6, Tick()) == [Load("a")]
    assert feed(s, 7, Loaded("a")) == [Start(1, "a")]


def test_a_damaged_model_is_not_loaded_twice() -> None:
    s = scheduler({"a": (2000, 100)})
    feed(s, 0, Request(1, "a"))
    (refusal,) = feed(s, 1, LoadFailed("a", "model_damaged", "no weights"))
    assert isinstance(refusal, Refuse)
    assert refusal.code == "model_damaged"


def test_a_load_killed_from_outside_costs_those_who_wait_nothing() -> None:
    s = scheduler({"a": (5000, 500)}, retry_delay_s=2.0, give_up_s=30.0)
    feed(s, 0, Request(1, "a"), Request(2, "a"))
    for at_s in (1, 4, 7, 10):
        assert feed(s, at_s, LoadFailed("a", "device_lost", "killed by signal 9", killed=True)) == []
        assert feed(s, at_s + 2, Tick()) == [Load("a")]
    assert feed(s, 13, Loaded("a")) == [Start(1, "a"), Start(2, "a")]


def test_a_resident_model_killed_before_it_starts_anything_is_loaded_again_too() -> None:
    s = scheduler({"a": (5000, 500)}, retry_delay_s=1.0)
    feed(s, 0, Request(1, "a"))
    feed(s, 1, LoadFailed("a", "device_lost", killed=True))
    assert feed(s, 2, Tick()) == [Load("a")]
    assert feed(s, 3, Loaded("a")) == [Start(1, "a")]
    assert kinds(feed(s, 4, WorkerDied("a", killed=True))) == ["Retry", "Load"]
    assert feed(s, 5, WorkerDied("a", killed=True)) == []
    assert feed(s, 6, Tick()) == [Load("a")]
    assert feed(s, 7, Loaded("a")) == [Start(1, "a", 2)]


def test_loads_that_are_killed_for_long_end_in_a_refusal() -> None:
    s = scheduler({"a": (5000, 500)}, retry_delay_s=5.0, give_up_s=30.0)
    feed(s, 0, Request(1, "a"), Request(2, "a"))
    at_s, loads = 1.0, 1
    while not (out := feed(s, at_s, LoadFailed("a", "device_lost", "killed by signal 9", killed=True))):
        loads += kinds(feed(s, at_s + 5, Tick())).count("Load")
        at_s += 6
        assert at_s < 60
    assert [(r.request_id, r.code) for r in out if isinstance(r, Refuse)] == [(1, "device_lost"), (2, "device_lost")]
    assert at_s >= 31 and loads == 6
    assert kinds(feed(s, at_s, Request(3, "a"))) == ["Load", "Wait"], "who asks later has a chance of their own"


def test_a_load_that_fails_by_itself_keeps_its_one_retry_among_kills() -> None:
    s = scheduler({"a": (5000, 500)}, retry_delay_s=1.0)
    feed(s, 0, Request(1, "a"))
    for at_s, killed in ((1, True), (3, False), (5, True)):
        assert feed(s, at_s, LoadFailed("a", "device_lost", killed=killed)) == []
        assert feed(s, at_s + 1, Tick()) == [Load("a")]
    assert kinds(feed(s, 7, LoadFailed("a", "device_lost"))) == ["Refuse"]


def test_a_dead_worker_is_replaced_and_its_requests_are_retried_once() -> None:
    s = scheduler({"a": (2000, 100)})
    loaded(s, "a")
    feed(s, 1, Request(1, "a"), Request(2, "a"), Tokens(2))
    died = feed(s, 2, WorkerDied("a"))
    assert kinds(died) == ["Retry", "Refuse", "Load"]
    assert isinstance(died[1], Refuse)
    assert (died[1].request_id, died[1].code) == (2, "device_lost")
    assert feed(s, 3, Done(1)) == []  # of the process that is gone
    assert feed(s, 3, Loaded("a")) == [Start(1, "a", 2)]
    (refusal,) = feed(s, 4, WorkerDied("a"))
    assert isinstance(refusal, Refuse)
    assert (refusal.request_id, refusal.code) == (1, "device_lost")
    assert s.snapshot().reserved_mb == 0


def test_a_worker_that_dies_while_loading_is_tried_once_more() -> None:
    s = scheduler({"a": (2000, 100)})
    feed(s, 0, Request(1, "a"))
    assert feed(s, 1, WorkerDied("a")) == []
    assert feed(s, 6, Tick()) == [Load("a")]
    (refusal,) = feed(s, 7, WorkerDied("a"))
    assert isinstance(refusal, Refuse)
    assert refusal.code == "device_lost"


# --- preload


def ask_in_turns(s: Scheduler, *names: str, start_s: float = 0.0) -> float:
    """One short request after another, loads answered at once; evictions too."""
    now_s = start_s
    for number, name in enumerate(names):
        now_s += 100
        pending = feed(s, now_s, Request(f"{start_s}-{number}", name))
        while pending:
            decision = pending.pop(0)
            if isinstance(decision, Load | Preload):
                pending += feed(s, now_s, Loaded(decision.model))
            elif isinstance(decision, Evict):
                pending += feed(s, now_s, Evicted(decision.model))
            elif isinstance(decision, Start):
                pending += feed(s, now_s, Done(decision.request_id))
    return now_s


def test_the_model_that_usually_follows_is_preloaded_while_pressure_stays_normal() -> None:
    s = scheduler({"a": (2000, 100), "b": (2000, 100), "c": (2000, 100)}, preload_enabled=True)
    now_s = ask_in_turns(s, "a", "b", "a", "b", "c", "a", "b", "c", "a")
    feed(s, now_s, Unload("b"), Evicted("b"), Unload("c"), Evicted("c"))
    assert feed(s, now_s + 1, Request("x", "a")) == [Start("x", "a"), Preload("b")]
    assert model(s, "b").preloaded
    feed(s, now_s + 2, Loaded("b"))
    assert feed(s, now_s + 3, Request("y", "b"))[0] == Start("y", "b")
    assert not model(s, "b").preloaded


def test_no_preload_when_it_is_off_or_would_leave_normal() -> None:
    for config, cost in (({"preload_enabled": False}, 2000), ({"preload_enabled": True}, 6000)):
        s = scheduler({"a": (2000, 100), "b": (cost, 100)}, **config)
        now_s = ask_in_turns(s, "a", "b", "a", "b")
        feed(s, now_s, Unload("b"), Evicted("b"))
        assert kinds(feed(s, now_s + 1, Request("x", "a"))) == ["Start"]


def preloaded(**costs: tuple[float, float]) -> tuple[Scheduler, float]:
    """A scheduler with a loaded, b being preloaded."""
    s = scheduler({"a": (2000, 100), "b": (4000, 100), **costs}, preload_enabled=True)
    now_s = ask_in_turns(s, "a", "b", "a", "b", "a")
    feed(s, now_s, Unload("b"), Evicted("b"))
    assert feed(s, now_s + 1, Request("x", "a"), Done("x")) == [Start("x", "a"), Preload("b")]
    return s, now_s + 1


def test_a_preload_is_broken_off_for_a_model_that_is_asked_for() -> None:
    s, now_s = preloaded(c=(1000, 100))
    assert feed(s, now_s, Request(1, "c"))[0] == Evict("b", "preload")
    assert feed(s, now_s, Evicted("b")) == [Load("c")]


def test_a_preload_that_is_asked_for_meanwhile_is_kept() -> None:
    s, now_s = preloaded(c=(1000, 100))
    assert feed(s, now_s, Request(1, "b")) == [Wait(1, "b", "loading", 0)]
    assert kinds(feed(s, now_s, Request(2, "c"))) == ["Wait"]
    assert feed(s, now_s + 1, Loaded("b")) == [Start(1, "b"), Load("c")]


def test_a_preloaded_model_goes_first_however_young() -> None:
    s, now_s = preloaded(c=(4000, 100))
    feed(s, now_s, Loaded("b"))
    assert feed(s, now_s + 1, Request(1, "c"))[0] == Evict("b", "room")
    assert model(s, "a").state == "ready"  # idle, old and longer idle, but asked for


def test_a_preload_that_failed_is_not_tried_again() -> None:
    s, now_s = preloaded()
    assert feed(s, now_s, LoadFailed("b")) == []
    assert kinds(feed(s, now_s + 1, Request("z", "a"))) == ["Start"]


def test_an_expected_model_is_loaded_while_nothing_else_is_to_be_done() -> None:
    s = scheduler({"a": (5000, 500), "b": (6000, 500)})
    assert feed(s, 0, Expected("a")) == [Load("a")]
    assert feed(s, 0, Expected("a"), Expected("b")) == []
    assert feed(s, 1, Request(1, "a")) == [Wait(1, "a", "loading", 0)]
    assert feed(s, 2, Loaded("a")) == [Start(1, "a", 1)]
    assert feed(s, 3, Done(1), Expected("b")) == [], "nothing makes room for what is not asked for"
    assert feed(s, 4, Request(2, "b"))[0] == Evict("a", "room")


def test_an_expected_model_that_nobody_asks_for_goes_first() -> None:
    s = scheduler({"a": (5000, 500), "b": (6000, 500)})
    feed(s, 0, Expected("a"))
    assert feed(s, 1, Request(1, "b"))[0] == Evict("a", "preload")


# --- keep-alive, unload, cancel, drain


def test_an_idle_model_is_unloaded_after_keep_alive() -> None:
    s = scheduler({"a": (2000, 100)}, keep_alive_s=300.0)
    loaded(s, "a", at_s=0)
    feed(s, 10, Request(1, "a"))
    feed(s, 20, Done(1))
    assert s.next_wakeup_s() == 320
    assert feed(s, 319, Tick()) == []
    assert s.snapshot().models[0].expires_in_s == 1
    assert feed(s, 320, Tick()) == [Evict("a", "idle")]
    assert s.snapshot().models[0].expires_in_s is None


def test_without_keep_alive_a_model_stays() -> None:
    s = scheduler({"a": (2000, 100)})
    loaded(s, "a")
    assert s.next_wakeup_s() is None
    assert feed(s, 1e6, Tick()) == []


def test_a_wake_up_that_was_missed_is_still_due() -> None:
    s = scheduler({"a": (6000, 100), "c": (100, 100)}, keep_alive_s=100.0)
    loaded(s, "a")
    feed(s, 150, Request(1, "c"))
    assert s.next_wakeup_s() == 100
    assert feed(s, 150, Tick()) == [Evict("a", "idle")]


def test_a_model_has_a_keep_alive_of_its_own() -> None:
    costs = {"a": ModelCost(2000, 100, keep_alive_s=1.0), "b": ModelCost(2000, 100, keep_alive_s=math.inf)}
    s = scheduler(costs | {"c": ModelCost(2000, 100)}, keep_alive_s=30.0)
    loaded(s, "a", "b", "c")
    assert s.next_wakeup_s() == 1
    assert feed(s, 1, Tick()) == [Evict("a", "idle")]
    assert feed(s, 30, Evicted("a"), Tick()) == [Evict("c", "idle")]
    assert s.next_wakeup_s() is None


def test_unload_waits_until_the_model_is_idle() -> None:
    s = scheduler({"a": (2000, 100)})
    loaded(s, "a")
    feed(s, 1, Request(1, "a"))
    assert feed(s, 2, Unload("a")) == []
    assert feed(s, 3, Done(1)) == [Evict("a", "asked")]


def test_cancel_in_each_state() -> None:
    s = scheduler({"a": ModelCost(2000, 100), "b": ModelCost(2000, 100)}, max_concurrent_slots=1)
    feed(s, 0, Request("loading", "a"), Request("queued", "a"))
    assert feed(s, 1, Cancelled("queued"), Cancelled("loading")) == []
    assert feed(s, 2, Loaded("a")) == []
    assert s.snapshot().reserved_mb == 2100  # the first slot was opened with the load
    feed(s, 3, Request("running", "a"), Request("next", "a"))
    assert feed(s, 4, Cancelled("running")) == [Stop("running", "a")]
    assert feed(s, 4, Cancelled("running"), Tokens("running")) == []
    assert feed(s, 5, Done("running")) == [Start("next", "a")]  # its slot was taken until then
    assert feed(s, 6, Cancelled("nobody"), Done("nobody")) == []


def test_cancel_while_it_waits_for_a_retry() -> None:
    s = scheduler({"a": (5000, 100)})
    loaded(s, "a")
    feed(s, 1, Request(1, "a"))
    feed(s, 2, MeasuredUsage(9600), Evicted("a", 5100, 0), Cancelled(1))
    assert s.snapshot().queue_length == 0
    assert feed(s, 10, Tick()) == []
    assert kinds(feed(s, 11, Request(1, "a"))) == ["Load", "Wait"]  # the id is free again


def test_a_cancelled_generation_is_not_retried_when_its_worker_dies() -> None:
    s = scheduler({"a": (5000, 100)})
    loaded(s, "a")
    feed(s, 1, Request(1, "a"), Cancelled(1))
    assert feed(s, 2, WorkerDied("a")) == []
    assert s.snapshot().running == 0


def test_drain_admits_nothing_and_serves_what_is_there() -> None:
    s = scheduler({"a": (5000, 100)})
    feed(s, 0, Request(1, "a"), Drain())
    (refusal,) = feed(s, 1, Request(2, "a"))
    assert isinstance(refusal, Refuse)
    assert refusal.code == "draining"
    assert refusal.retry_after_s
    assert feed(s, 2, Loaded("a")) == [Start(1, "a")]
    feed(s, 3, Done(1))
    assert s.snapshot().draining and not s.snapshot().running


# --- what it looks like


def test_the_snapshot_shows_models_slots_memory_and_queue() -> None:
    s = scheduler({"a": (5000, 500), "b": (6000, 500)})
    feed(s, 0, Request(1, "a"), Request(2, "b"))
    feed(s, 1, Loaded("a", used_mb=5600))
    shown = s.snapshot()
    assert shown.models[0] == ModelStatus("a", "ready", 1, 4, 0, 5500, 500, None, False, 5500, "")
    assert shown.models[1] == ModelStatus("b", "absent", 0, 4, 1, 0, 0, None, False, 0, "memory")
    assert (shown.reserved_mb, shown.measured_mb, shown.usage_mb, shown.pool_mb) == (5500, 5600, 5600, 10_000)
    assert (shown.level, shown.queue_length, shown.running, shown.loads) == ("normal", 1, 1, 1)
    feed(s, 5, Cancelled(2), Done(1))
    assert s.snapshot().models[0].idle_s == 0
    feed(s, 8, Tick())
    assert s.snapshot().models[0].idle_s == 3


def test_a_pool_takes_its_limits_from_the_profile() -> None:
    path = Path(__file__).parents[1] / "profiles" / "hardware_profiles.yaml"
    profile = load_profiles([path]).select("compact")
    config = pool_from_profile(msgspec.structs.replace(profile, model_keep_alive_s=300.0))
    assert config.pool_mb == profile.vram_budget_mb - profile.fixed_mb
    assert config.max_concurrent_slots == 1
    assert config.preload_enabled
    assert (config.min_residency_s, config.retry_delay_s, config.keep_alive_s) == (60, 5, 300)

"""The college's figures in Prometheus' text format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import accumulate
from typing import Any

from coe_cli.core.scheduling.college_status import CollegeStatus
from coe_cli.core.scheduling.scheduler_state import Snapshot
from coe_cli.runtime.college.college_requests import Counters
from coe_cli.runtime.college.timings import BOUNDS_S

_MB = 2**20


def prometheus_text(
    status: CollegeStatus, snapshot: Snapshot, responses: Counter[tuple[str, int]], counters: Counters
) -> bytes:
    """All metrics; ``responses`` counts by path and status."""
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    def gauge(name: str, text: str, value: float) -> Any:
        return GaugeMetricFamily(f"coe_{name}", text, value=value)

    def counter(name: str, text: str, value: float) -> Any:
        return CounterMetricFamily(f"coe_{name}", text, value=value)

    def per_model(name: str, text: str, values: Iterable[tuple[str, float | None]]) -> Any:
        family = GaugeMetricFamily(f"coe_model_{name}", text, labels=["model"])
        for model, value in values:
            if value is not None:
                family.add_metric([model], value)
        return family

    class Collector:
        def collect(self) -> Iterable[Any]:
            yield gauge("uptime_seconds", "Time since the start", status.uptime_s or 0.0)
            yield gauge("pressure_ratio", "Memory in use over the pool", snapshot.pressure)
            yield gauge("memory_usage_bytes", "Larger of reserved and measured memory", snapshot.usage_mb * _MB)
            yield gauge("memory_reserved_bytes", "Reserved memory", snapshot.reserved_mb * _MB)
            yield gauge("memory_pool_bytes", "Memory that may be used", snapshot.pool_mb * _MB)
            yield gauge("queue_length", "Requests that wait", snapshot.queue_length)
            yield gauge("running", "Answers in progress", snapshot.running)
            yield gauge("slots", "Answers that may be in progress at once", snapshot.max_concurrent_slots)
            yield counter("answers", "Complete answers", counters.answers)
            yield counter("failures", "Requests that ended with an error", counters.failures)
            yield counter("prompt_tokens", "Tokens of the prompts of complete answers", counters.prompt_tokens)
            yield counter("reused_prompt_tokens", "Prompt tokens found in a cache", counters.reused_prompt_tokens)
            yield counter("completion_tokens", "Tokens of complete answers", counters.completion_tokens)
            yield counter("model_loads", "Models loaded on request", snapshot.loads)
            yield counter("model_preloads", "Models loaded ahead", snapshot.preloads)
            yield counter("model_evictions", "Models taken out", snapshot.evictions)
            yield counter("retries", "Answers started again", snapshot.retries)
            yield counter("refusals", "Requests refused", snapshot.refusals)
            lines = status.models
            yield per_model("running", "Answers in progress", ((m.name, m.running) for m in lines))
            yield per_model("waiting", "Requests that wait", ((m.name, m.waiting) for m in lines))
            yield per_model("reserved_bytes", "Reserved memory", ((m.name, m.reserved_mb * _MB) for m in lines))
            yield per_model(
                "measured_bytes",
                "Measured memory",
                ((m.name, None if m.measured_mb is None else m.measured_mb * _MB) for m in lines),
            )
            family = CounterMetricFamily("coe_http_responses", "Responses", labels=["path", "status"])
            for (path, code), count in sorted(responses.items()):
                family.add_metric([path, str(code)], count)
            yield family
            yield from _as_vllm(snapshot, counters)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Collector())
    return generate_latest(registry)


_LABELS = ["model_name", "expert"]
_TIMES = {
    "time_to_first_token_seconds": ("first_token", "From the request to the first token"),
    "inter_token_latency_seconds": ("between_tokens", "Between two tokens, the mean of an answer"),
    "request_queue_time_seconds": ("queue", "From the request to the beginning of its prompt"),
    "e2e_request_latency_seconds": ("whole", "From the request to its end"),
}
_COUNTS = {
    "prompt_tokens": ("prompt_tokens", "Tokens of prompts"),
    "generation_tokens": ("completion_tokens", "Tokens of answers"),
    "prefix_cache_queries": ("prompt_tokens", "Tokens of prompts that were looked for in a cache"),
    "prefix_cache_hits": ("reused_tokens", "Tokens of prompts that were found in a cache"),
}


def _as_vllm(snapshot: Snapshot, counters: Counters) -> Iterable[Any]:
    """The figures that dashboards are made for, by vLLM's names, for each model and expert."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    for name, (field, text) in _TIMES.items():
        histogram = HistogramMetricFamily(f"vllm:{name}", text, labels=_LABELS)
        for labels, timings in counters.timings.items():
            found = getattr(timings, field)
            ends = [*map(str, BOUNDS_S), "+Inf"]
            histogram.add_metric(list(labels), list(zip(ends, accumulate(found.counts), strict=True)), found.sum_s)
        yield histogram
    for name, (field, text) in _COUNTS.items():
        counter = CounterMetricFamily(f"vllm:{name}", text, labels=_LABELS)
        for labels, timings in counters.timings.items():
            counter.add_metric(list(labels), getattr(timings, field))
        yield counter
    ended = CounterMetricFamily("vllm:request_success", "Complete answers", labels=[*_LABELS, "finished_reason"])
    for labels, timings in counters.timings.items():
        for reason, count in timings.ended.items():
            ended.add_metric([*labels, reason], count)
    yield ended
    for name in ("running", "waiting"):
        gauge = GaugeMetricFamily(f"vllm:num_requests_{name}", f"Requests that are {name}", labels=_LABELS[:1])
        for model in snapshot.models:
            gauge.add_metric([model.name], getattr(model, name))
        yield gauge

"""From instants that a worker reports to times and rates, and from repeats to a median and its spread."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from msgspec import Struct

from coe_cli.core.bench.bench_rows import Range


class MeasuredAnswer(Struct, frozen=True):
    """One answer on the worker's clock: when it began, when each token came, how many prompt tokens were new to it."""

    began_s: float
    token_at_s: tuple[float, ...]
    new_prompt_tokens: int


class RunFigures(Struct, frozen=True):
    """One repeat with all slots. None where there is nothing to measure: one token has no rate of decode."""

    ttft_s: float
    prefill_tps: float
    decode_tps: float | None


class Summary(Struct, frozen=True):
    """Median and range of one figure over the repeats."""

    median: float
    range: Range


def run_figures(answers: Sequence[MeasuredAnswer]) -> RunFigures:
    """Figures of answers that were asked for together.

    Time to first token: the median over the slots, from the moment when the first of them began, so waiting counts.
    Prefill: all new prompt tokens over the time until the last slot had its first token. Decode: all tokens between the
    moment when every slot was decoding and the moment when the first of them ended, over that time.
    """
    began = min(answer.began_s for answer in answers)
    firsts = [answer.token_at_s[0] for answer in answers]
    all_decoding, first_end = max(firsts), min(answer.token_at_s[-1] for answer in answers)
    tokens = sum(all_decoding < at <= first_end for answer in answers for at in answer.token_at_s)
    return RunFigures(
        ttft_s=median(firsts) - began,
        prefill_tps=sum(answer.new_prompt_tokens for answer in answers) / (all_decoding - began),
        decode_tps=tokens / (first_end - all_decoding) if first_end > all_decoding else None,
    )


def summarise(values: Sequence[float | None], digits: int) -> Summary | None:
    """Median and range of the values that were measured, all rounded alike; None without any."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    ends = Range(round(min(known), digits), round(max(known), digits))
    return Summary(round(median(known), digits), ends)


def own_peak_mb(peak_mb: float, before_mb: float, after_mb: float, tolerance_mb: float = 64.0) -> float | None:
    """The peak of one process from the device's memory in use by all: with ``before_mb`` taken off.

    None when what others use has changed meanwhile by more than ``tolerance_mb``: the peak could be theirs.
    """
    return max(0.0, peak_mb - before_mb) if abs(after_mb - before_mb) <= tolerance_mb else None

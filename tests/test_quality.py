"""The quality check's arithmetic, on models whose answers are known, and the shipped text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from coe_cli.errors import ModelDamaged, UsageError
from coe_cli.runtime.conversion.quality import QUALITY_TEXT, WINDOW_TOKENS, compare, measure_quality

VOCAB = 8


def uniform(window: list[int]) -> np.ndarray:
    return np.zeros((len(window), VOCAB), np.float32)


def knows_the_next(window: list[int]) -> np.ndarray:
    logits = np.zeros((len(window), VOCAB), np.float32)
    logits[np.arange(len(window) - 1), window[1:]] = 30
    return logits


TOKENS = [1, 5, 2, 7, 3, 3, 6, 1] * 150


def test_a_model_against_itself_loses_nothing() -> None:
    quality = compare(TOKENS, knows_the_next, knows_the_next)
    assert (quality.loss_percent, quality.agreement, quality.kl_nats) == (0, 1, 0)
    assert quality.tokens == len(TOKENS)


def test_uniform_guessing_has_the_perplexity_of_the_vocabulary() -> None:
    quality = compare(TOKENS, knows_the_next, uniform)
    assert quality.source_perplexity == pytest.approx(1, abs=1e-9)
    assert quality.perplexity == pytest.approx(VOCAB)
    assert quality.loss_percent == pytest.approx(100 * (VOCAB - 1))
    assert quality.agreement < 0.2
    assert quality.kl_nats > 1.5


def test_windows_are_apart_and_of_bounded_length() -> None:
    lengths: list[int] = []

    def note(window: list[int]) -> np.ndarray:
        lengths.append(len(window))
        return uniform(window)

    seen: list[float] = []
    compare([1] * (WINDOW_TOKENS + 3), note, uniform, seen.append)
    assert lengths == [WINDOW_TOKENS, 3]
    assert seen == [0.5, 1.0]


def test_too_short_a_text_is_refused() -> None:
    with pytest.raises(UsageError):
        compare([1], uniform, uniform)


def test_shipped_text_is_plain_and_long_enough() -> None:
    text = QUALITY_TEXT.read_text(encoding="ascii")
    assert text.startswith("CHAPTER I")
    assert 14_000 < len(text.split()) < 18_000


def test_a_folder_without_a_model_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ModelDamaged):
        measure_quality(tmp_path, tmp_path)

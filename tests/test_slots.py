"""Which generator answers which request, and how many there are: on doubles of ONNX Runtime GenAI's objects."""

from __future__ import annotations

import weakref
from typing import Any, ClassVar

import pytest

from coe_cli.runtime.worker.protocol import Guidance
from coe_cli.runtime.worker.slots import Slots


class FakeParams:
    def __init__(self, model: Any) -> None:
        self.options: dict[str, Any] = {}

    def set_search_options(self, **options: Any) -> None:
        if "unknown" in options:
            raise RuntimeError("unknown option")
        self.options |= options

    def set_guidance(self, kind: str, data: str) -> None:
        pass


class FakeGenerator:
    """Holds the tokens that it was given; token 13 makes it fail."""

    alive: ClassVar[weakref.WeakSet[FakeGenerator]] = weakref.WeakSet()
    peak = 0

    def __init__(self, model: Any, params: FakeParams) -> None:
        self.tokens: list[int] = []
        self.pieces: list[int] = []
        self.options = params.options
        FakeGenerator.alive.add(self)
        FakeGenerator.peak = max(FakeGenerator.peak, len(FakeGenerator.alive))

    def append_tokens(self, tokens: Any) -> None:
        if 13 in tokens:
            raise RuntimeError("device removed")
        self.tokens += [int(token) for token in tokens]
        self.pieces.append(len(tokens))

    def rewind_to(self, length: int) -> None:
        del self.tokens[length:]


class FakeOga:
    GeneratorParams = FakeParams
    Generator = FakeGenerator


@pytest.fixture
def slots() -> Slots:
    FakeGenerator.alive = weakref.WeakSet()
    FakeGenerator.peak = 0
    return Slots(FakeOga, None, 4)


GREEDY: dict[str, Any] = {"max_length": 64, "do_sample": False}
SEEDED: dict[str, Any] = {"max_length": 64, "do_sample": True, "random_seed": 7}


def _answer(slots: Slots, options: dict[str, Any], ids: list[int]) -> int:
    """Tokens that were reused."""
    slot = slots.acquire(options, None, ids)
    reused = slot.reusable_tokens(ids)
    slot.begin(ids)
    while (generator := slot.run_chunk()) is None:
        pass
    assert generator.tokens == ids
    slots.release(slot)
    return reused


@pytest.mark.parametrize(
    ("chunk_size", "pieces"), [(None, [512, 186, 2]), (4096, [512, 186, 2]), (300, [300, 300, 98, 2])]
)
def test_prompts_are_read_in_pieces_up_to_the_models_own_bound(chunk_size: int | None, pieces: list[int]) -> None:
    """The plan counts on it, for the first prompt of a generator and for those that follow."""
    slots = Slots(FakeOga, None, 1, chunk_size)
    _answer(slots, GREEDY, [1] * 698)
    _answer(slots, GREEDY, [1] * 698)
    (generator,) = FakeGenerator.alive
    assert generator.pieces == pieces


def test_a_slot_that_could_not_be_made_does_not_count(slots: Slots) -> None:
    for _ in range(4):
        with pytest.raises(RuntimeError):
            slots.acquire({"unknown": 1}, None, [1, 2])
    assert [_answer(slots, GREEDY, [1, 2, 3, 4]) for _ in range(2)] == [0, 2]


def test_a_grammar_gets_the_prompt_whole_and_the_runtime_splits_it() -> None:
    slot = Slots(FakeOga, None, 1, 300).acquire(GREEDY, Guidance("regex", "a"), [1] * 700)
    slot.begin([1] * 700, whole=True)
    generator = slot.run_chunk()
    assert generator.pieces == [700] and generator.options["chunk_size"] == 300


def test_a_conversation_finds_its_tokens_again(slots: Slots) -> None:
    assert _answer(slots, GREEDY, [1, 2, 3, 4]) == 0
    assert _answer(slots, GREEDY, [1, 2, 3, 4, 5, 6]) == 4
    assert _answer(slots, GREEDY, [1, 2, 9, 9, 9]) == 2
    assert len(FakeGenerator.alive) == 1


def test_at_least_two_tokens_are_run(slots: Slots) -> None:
    _answer(slots, GREEDY, [1, 2, 3, 4])
    assert _answer(slots, GREEDY, [1, 2, 3, 4]) == 2
    assert _answer(slots, GREEDY, [1, 2, 3, 4, 5]) == 3


def test_no_more_generators_than_ever_answered_at_once(slots: Slots) -> None:
    """The scheduler counts a slot's memory when it is first used: a generator beyond that was in nobody's plan."""
    for options in (GREEDY, SEEDED, {**GREEDY, "max_length": 32}, SEEDED, GREEDY):
        _answer(slots, options, [1, 2, 3])
    assert FakeGenerator.peak == 1
    first, second = slots.acquire(GREEDY, None, [1]), slots.acquire(SEEDED, None, [2])
    slots.release(first)
    slots.release(second)
    del first, second
    _answer(slots, {**GREEDY, "max_length": 16}, [5, 6])
    assert FakeGenerator.peak == 2


def test_a_slot_that_failed_is_not_used_again(slots: Slots) -> None:
    slot = slots.acquire(GREEDY, None, [1, 13])
    slot.begin([1, 13])
    with pytest.raises(RuntimeError):
        slot.run_chunk()
    slots.release(slot, reusable=False)
    del slot
    assert len(FakeGenerator.alive) == 0
    assert _answer(slots, GREEDY, [1, 2, 3]) == 0


def test_a_seeded_generator_is_never_used_again(slots: Slots) -> None:
    _answer(slots, SEEDED, [1, 2, 3, 4])
    assert _answer(slots, SEEDED, [1, 2, 3, 4]) == 0

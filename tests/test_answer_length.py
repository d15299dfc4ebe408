"""Answers end: at a default limit, and where they repeat themselves, through every way in; good answers are left alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import REPOSITORY, Coe
from hypothesis import given
from hypothesis import strategies as st
from model_store.saying_model import write_saying_model
from serving import Served, serving
from ways import WAYS, say

from coe_cli.core.answers.repetition import LEAST_TIMES, LEAST_TOKENS, MOST_PERIOD, WORDLESS_TOKENS, RepetitionDetector

_TOKEN = re.compile(r" ?[^\W\d_]{1,5}|\d{1,3}|[^\w\n]{1,4}|\s|.", re.DOTALL)
"""About as tokenizers cut: words of a few letters, numbers of three digits, punctuation in runs."""


def ended_at(tokens: list[str]) -> int | None:
    """After how many tokens the answer is said to repeat itself."""
    detector, ids = RepetitionDetector(), {text: number for number, text in enumerate(dict.fromkeys(tokens))}
    return next((n for n, text in enumerate(tokens, 1) if detector.feed(ids[text], text)), None)


def cut(text: str) -> list[str]:
    return _TOKEN.findall(text)


TABLE = "| number | square | cube |\n|---|---|---|\n" + "".join(f"| {n} | {n * n} | {n**3} |\n" for n in range(1, 200))
WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
GOOD: dict[str, str] = {
    "a table": TABLE,
    "a table of few values": "".join(f"| user{n} | yes | no | 0 | 0 | active |\n" for n in range(300)),
    "numbers": ", ".join(str(n) for n in range(1, 1500)),
    "numbers in words": " ".join(f"{a} hundred and {b}ty {c}" for a in WORDS for b in WORDS for c in WORDS),
    "a matrix of zeros": "[" + ", ".join("[" + ", ".join(["0"] * 15) + "]" for _ in range(15)) + "]",
    "rules": "-" * 2000 + "\n" + "=" * 2000,
    "blanks": "    " * 200 + "x",
    "a unit matrix": "\n".join(" ".join("1" if a == b else "0" for a in range(40)) for b in range(40)),
    "imports": "".join(f"from package.module_{n} import thing_{n}\n" for n in range(200)),
    "inserts": "".join(f"INSERT INTO t (id, name, flag) VALUES ({n}, 'x', TRUE);\n" for n in range(200)),
    "a line ten times": "I shall not talk in class.\n" * 10,
    "JSON": "[" + ",".join(f'{{"id": {n}, "ok": true, "tags": []}}' for n in range(200)) + "]",
}
BAD: dict[str, str] = {
    "a word": "The capital is Paris." + " la France," * 400,
    "a sentence": "Yes. " + "I am a helpful assistant and I will help you. " * 60,
    "a paragraph": "Well. " + " ".join(f"word{chr(97 + n)} goes on" for n in range(24)) * 12,
    "dots": "Wait" + " ... " * 2000,
}


@pytest.mark.parametrize("name", GOOD)
def test_good_answers_are_left_alone(name: str) -> None:
    assert ended_at(cut(GOOD[name])) is None


@pytest.mark.parametrize("name", BAD)
def test_answers_that_repeat_themselves_end(name: str) -> None:
    tokens = cut(BAD[name])
    at = ended_at(tokens)
    assert at is not None and at < len(tokens)


def test_code_and_prose_of_this_repository_are_left_alone() -> None:
    for path in [
        *REPOSITORY.glob("coe_cli/core/*/p*.py"),
        *REPOSITORY.glob("docs/m*.md"),
        *REPOSITORY.glob("profiles/*"),
    ]:
        assert ended_at(cut(path.read_text(encoding="utf-8"))) is None, path


@given(
    before=st.lists(st.sampled_from("abcdef"), max_size=100),
    block=st.lists(st.sampled_from(["a", "b", " c", "1", ","]), min_size=1, max_size=MOST_PERIOD),
)
def test_every_block_that_goes_on_is_found(before: list[str], block: list[str]) -> None:
    least = max(LEAST_TOKENS, LEAST_TIMES * len(block), 0 if any(map(str.isalpha, "".join(block))) else WORDLESS_TOKENS)
    tokens = before + block * (least // len(block) + 64)
    at = ended_at(tokens)
    assert at is not None and at <= len(before) + least + len(block) + 16


@given(tokens=st.lists(st.sampled_from("ab"), min_size=300, max_size=600), period=st.integers(1, MOST_PERIOD))
def test_what_is_found_is_a_repetition(tokens: list[str], period: int) -> None:
    at = ended_at(tokens + tokens[-period:] * 3)
    if at is not None:
        said = (tokens + tokens[-period:] * 3)[:at]
        assert any(
            said[-LEAST_TOKENS:-p] == said[p - LEAST_TOKENS :] for p in range(1, LEAST_TOKENS // LEAST_TIMES + 1)
        )


@pytest.fixture(scope="module")
def served(home: Coe) -> Iterator[Served]:
    """A model that repeats three words for ever, and one without letters, which only a limit ends."""
    write_saying_model(home.models / "looping", ["So", " la", " France", ","], again_from=1)
    write_saying_model(home.models / "counting", ["1", ",", "0"], again_from=1)
    profile = (
        "provider: cpu, vram_budget_mb: 4000, max_concurrent_slots: 2, context_length: 4096, max_answer_tokens: 40"
    )
    (home.config / "hardware_profiles.yaml").write_text(
        f"default_profile: mine\nauto_detect: {{enabled: false}}\nprofiles:\n  mine: {{{profile}}}\n"
    )
    with serving(home, "-p", "mine") as it:
        yield it


@pytest.mark.long
@pytest.mark.parametrize("way", WAYS)
def test_an_answer_that_repeats_itself_ends_with_a_note(way: str, served: Served) -> None:
    said = say(way, served, model="looping", temperature=0, max_tokens=450)
    assert said.text.startswith("So la France, la France,") and len(said.text) < 300 * len(" France,")
    assert said.finish_reason in ("length", "") and "repeated itself" in said.notes


@pytest.mark.parametrize("way", [way for way in WAYS if not way.startswith("/v1/messages")])  # it is told one always
def test_an_answer_has_a_default_limit(way: str, served: Served) -> None:
    said = say(way, served, model="counting", temperature=0)
    assert said.text == "1" + ",0" * 19 + "," and said.finish_reason in ("length", "")
    assert "ends at 40 tokens" in said.notes and "max_answer_tokens" in said.notes


def test_a_raw_completion_has_openais_default(served: Served) -> None:
    body = {"model": "counting", "prompt": "Hi ", "temperature": 0}
    assert served.request("POST", "/v1/completions", body).json["usage"]["completion_tokens"] == 16
    usage = served.request("POST", "/v1/completions", body | {"max_tokens": 20}).json["usage"]
    assert usage["completion_tokens"] == 20


def test_the_limit_is_1024_as_shipped(tmp_path: Path) -> None:
    from coe_cli.runtime.settings import load_profiles

    shipped = load_profiles([REPOSITORY / "profiles" / "hardware_profiles.yaml"])
    assert {profile.max_answer_tokens for profile in shipped.profiles.values()} == {1024}

"""Text that arrives in pieces: thoughts, stop strings and code blocks come out the same however it was cut."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from conftest import MODEL, ids_of
from hypothesis import given
from hypothesis import strategies as st

from coe_cli.core.answers.answer import last_code_block
from coe_cli.core.answers.stop_strings import StopStrings
from coe_cli.core.answers.thinking import ThinkingSplitter
from coe_cli.providers.settings import default_session_options
from coe_cli.runtime.worker import protocol
from coe_cli.runtime.worker.worker_process import WorkerProcess

_texts = st.lists(st.sampled_from(["<think>", "</think>", "<", "/", "think>", "a", " ", "\n", "é", "<thi"])).map(
    "".join
)


def _cut(text: str, places: list[int]) -> list[str]:
    edges = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[a:b] for a, b in itertools.pairwise(edges)]


def _split(pieces: list[str], in_thinking: bool = False) -> tuple[str, str]:
    """(answer, thoughts)"""
    splitter = ThinkingSplitter(in_thinking=in_thinking)
    out = [part for piece in pieces for part in splitter.feed(piece)] + splitter.finish()
    assert all(part.text for part in out)
    return "".join(p.text for p in out if not p.is_thinking), "".join(p.text for p in out if p.is_thinking)


@given(text=_texts, places=st.lists(st.integers(0, 200)), in_thinking=st.booleans())
def test_thoughts_do_not_depend_on_the_cuts(text: str, places: list[int], in_thinking: bool) -> None:
    assert _split(_cut(text, places), in_thinking) == _split([text], in_thinking) == _split(list(text), in_thinking)


@given(text=st.text(alphabet="ab <>/\n", max_size=40))
def test_text_without_tags_is_all_answer(text: str) -> None:
    assert _split(list(text)) == (text, "")


@pytest.mark.parametrize(
    ("text", "in_thinking", "answer", "thoughts"),
    [
        ("Paris.", False, "Paris.", ""),
        ("<think>\nhm\n</think>\n\nParis.", False, "Paris.", "hm\n"),
        ("hm\n</think>\n\nParis.", True, "Paris.", "hm\n"),
        ("\nhm", True, "", "hm"),
        ("<think>never closed", False, "", "never closed"),
        ("a < b and <thing>", False, "a < b and <thing>", ""),
        ("a <thi", False, "a <thi", ""),
        ("<think></think>x", False, "x", ""),
        ("x</think>y", False, "x</think>y", ""),
        ("<think>a<think>b</think>c", False, "c", "a<think>b"),
        ("", False, "", ""),
        ("Use `<think>` here.", False, "Use `<think>` here.", ""),
        ("a</think>The `<think>` tag.", True, "The `<think>` tag.", "a"),
        ("<think>a</think>b<think>c</think>d", False, "b<think>c</think>d", "a"),
        ("\n <think>a</think>b", False, "b", "a"),
        ("\n <thin", False, "\n <thin", ""),
        (" \n", False, " \n", ""),
    ],
)
def test_thoughts(text: str, in_thinking: bool, answer: str, thoughts: str) -> None:
    assert _split([text], in_thinking) == (answer, thoughts)


@given(text=_texts, places=st.lists(st.integers(0, 200)))
def test_a_model_that_does_not_think_only_answers(text: str, places: list[int]) -> None:
    splitter = ThinkingSplitter(thinks=False)
    pieces = [piece for part in _cut(text, places) for piece in splitter.feed(part)] + splitter.finish()
    assert "".join(piece.text for piece in pieces) == text and not any(piece.is_thinking for piece in pieces)


def _stop(pieces: list[str], stops: list[str]) -> tuple[str, bool]:
    stop_strings = StopStrings(stops)
    shown = ""
    for piece in pieces:
        shown += stop_strings.feed(piece)
        if stop_strings.stopped:
            break
    return shown + stop_strings.finish(), stop_strings.stopped


@given(
    text=st.text(alphabet="abc", max_size=20),
    stops=st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=3),
    places=st.lists(st.integers(0, 30)),
)
def test_stops_do_not_depend_on_the_cuts(text: str, stops: list[str], places: list[int]) -> None:
    shown, stopped = _stop(_cut(text, places), stops)
    assert (shown, stopped) == _stop(list(text), stops)
    assert text.startswith(shown)
    assert not any(stop in shown for stop in stops)
    assert stopped == any(stop in text for stop in stops)


@pytest.mark.parametrize(
    ("text", "stops", "shown", "stopped"),
    [
        ("answer\nQ: next", ["\nQ:"], "answer", True),
        ("answer\nQ", ["\nQ:"], "answer\nQ", False),
        ("ab", ["b", "a"], "", True),
        ("xabcd", ["abcd", "bc"], "xa", True),
        ("xabc", ["bc", "abc"], "x", True),
        ("aab", ["ab"], "a", True),
        ("abc", [], "abc", False),
        ("abc", [""], "abc", False),
    ],
)
def test_stops(text: str, stops: list[str], shown: str, stopped: bool) -> None:
    assert _stop([text], stops) == _stop(list(text), stops) == (shown, stopped)


def test_a_worker_ends_at_the_stop_string(models_dir: Path) -> None:
    """The real model counts; the answer ends before the stop string, however its tokens are cut."""
    worker = WorkerProcess()
    try:
        worker.send(protocol.Load(str(models_dir / MODEL), "cpu", session_options=default_session_options("cpu")))
        system = "You are a helpful assistant. Answer in as few words as it needs."
        question = ids_of("What is the capital of France?", system)

        def ask(request_id: int, stop: list[str]) -> tuple[str, str]:
            worker.send(protocol.Generate(request_id, question, 512, max_tokens=64, stop=stop))
            text = ""
            while True:
                message = worker.receive(120)
                if isinstance(message, protocol.Token):
                    assert message.request_id == request_id
                    text += message.text
                assert not isinstance(message, protocol.Failed), message
                if isinstance(message, protocol.Done):
                    return text, message.finish_reason

        whole, reason = ask(1, [])
        assert "Paris" in whole and reason == "stop"
        assert ask(2, ["Par"]) == (whole[: whole.index("Par")], "stop")
        assert ask(3, ["capital of Fr", "never"]) == (whole.split("capital of Fr")[0], "stop")
        assert ask(4, ["never said"]) == (whole, "stop")
    finally:
        worker.kill()
    assert not worker.alive


@pytest.mark.parametrize(
    ("text", "block"),
    [
        ("no code", None),
        ("```\nx\n```", "x\n"),
        ("```python\nx = 1\n```\nand\n~~~\ny\n~~~\nend", "y\n"),
        ("```\nunclosed", "unclosed"),
        ("```\n", ""),
        ("```", ""),
        ("````md\n```\ninner\n```\n````", "```\ninner\n```\n"),
        ("```\na\n~~~\nb\n```", "a\n~~~\nb\n"),
        ("    ```\nindented by four: not a fence", None),
        ("  ```py\n  x\n  ```", "  x\n"),
        ("use `x` and ```y``` inline", None),
        ("```y``` begins a line\nbut is no fence", None),
        ("```\nx\n```   \nafter", "x\n"),
        ("```py\r\nx\r\n```\r\nafter", "x\r\n"),
        ("```\nx\n```not closing\ny\n```", "x\n```not closing\ny\n"),
    ],
)
def test_the_last_code_block(text: str, block: str | None) -> None:
    assert last_code_block(text) == block


@given(code=st.text(alphabet="ab`~ \n", max_size=30), before=st.text(alphabet="ab \n", max_size=20))
def test_a_block_in_a_longer_fence_comes_back(code: str, before: str) -> None:
    fence = "`" * 40
    assert last_code_block(f"{before}\n{fence}\n{code}\n{fence}\n") == code + "\n"

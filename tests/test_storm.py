"""32 clients while college and workers are killed and stopped: each answer is the right one, or an error."""

from __future__ import annotations

import contextlib
import functools
import http.client
import json
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator

import psutil
import pytest
from conftest import Coe, eventually, is_gone, workers_of
from serving import Response, Served, end

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals"),
]

QUESTIONS = [
    "The capital of France is",
    "Name a colour.",
    "Name a fruit.",
    "Write one sentence about rain.",
    "Hi",
    "One, two,",
]
TOKENS = 12
CLIENTS, WANTED, SECONDS, AT_MOST_S = 32, 500, 60.0, 480.0
STRIKES = [(who, how) for who in ("college", "worker") for how in ("killed", "stopped")]
BETWEEN = 20
"""Right answers from one strike to the next: a storm that leaves no time for an answer would compare none."""
AT_LEAST = 2 * BETWEEN * len(STRIKES)
"""Right answers without which too little was compared: a machine that is busy has no more of ``WANTED`` in ``AT_MOST_S``."""


class Storm:
    """``counts``: what became of the requests and what was done to the processes."""

    def __init__(self, coe: Coe) -> None:
        self.coe, self.chance = coe, random.Random(7)
        self.counts: Counter[str] = Counter()
        self.wrong: list[object] = []
        self.over = threading.Event()
        self.begun = time.monotonic()

    def serve(self) -> Served:
        return Served(self.coe, self.coe.run("serve", "--keep-alive", "10m").check().stdout.strip())

    def client(self, number: int, expected: dict[str, str]) -> None:
        """Ask until the storm is over; every other client reads along."""
        chance, stream = random.Random(number), bool(number % 2)
        while not self.over.is_set():
            question = chance.choice(QUESTIONS)
            try:
                response = Served(self.coe, self._url()).chat(question, max_tokens=TOKENS, stream=stream)
                self.counts[self._judged(response, expected[question], stream)] += 1
            except (OSError, http.client.HTTPException):  # the college is gone
                self.counts["no connection"] += 1
                time.sleep(0.3)
            except Exception as error:
                self.wrong.append((question, repr(error)))

    def _judged(self, response: Response, expected: str, stream: bool) -> str:
        """What became of a request that was answered, "right" or how it failed; raises if it is neither."""
        if response.status != 200:
            assert response.status in (429, 500, 503) and response.error["message"], response.body
            return f"status {response.status}"
        if not stream:
            assert response.json["choices"][0]["message"]["content"] == expected, response.body
            return "right"
        events = [line.removeprefix("data: ") for line in response.body.decode().split("\n\n") if line]
        chunks = [json.loads(event) for event in events if event != "[DONE]"]
        text = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c.get("choices"))
        if any("error" in chunk for chunk in chunks):
            assert expected.startswith(text), (response.body, "is not how the answer begins")
            return "error in a stream"
        assert events[-1] == "[DONE]" and text == expected, response.body
        return "right"

    def _url(self) -> str:
        try:
            state = json.loads((self.coe.folder / "state" / "college.json").read_text())
        except ValueError:  # a state file that is half there would be one too
            self.wrong.append("the state file is no JSON")
            raise
        return f"http://{state['host']}:{state['port']}"

    def strikes(self) -> None:
        """Kill and stop in turns of all four, in any order; mostly among answers, sometimes at once after the last."""
        deck: list[tuple[str, str]] = []
        while self.lasts:
            if self.chance.random() < 0.75:
                target = self.counts["right"] + BETWEEN
                with contextlib.suppress(AssertionError):
                    eventually(functools.partial(self._reached, target), 30)
            time.sleep(self.chance.uniform(0.0, 1.0))
            deck = deck or self.chance.sample(STRIKES, len(STRIKES))
            with contextlib.suppress(psutil.Error, OSError):  # it ended by itself meanwhile
                self._strike(*deck.pop())

    def _reached(self, right: int) -> bool:
        return self.counts["right"] >= right or not self.lasts

    def _strike(self, who: str, how: str) -> None:
        """Kill or stop one process; a college that was killed is started again."""
        college = eventually(self.college)
        workers = workers_of(college)
        if who == "worker" and not workers:
            return
        victim = college if who == "college" else self.chance.choice(workers)
        if how == "stopped":
            victim.send_signal(signal.SIGSTOP)
            time.sleep(self.chance.uniform(0.05, 1.0))
            victim.send_signal(signal.SIGCONT)
        else:
            victim.kill()
        self.counts[f"{who} {how}"] += 1
        if (who, how) == ("college", "killed"):
            eventually(lambda: is_gone(college) and all(is_gone(worker) for worker in workers))
            self.serve()

    def college(self) -> psutil.Process | None:
        with contextlib.suppress(OSError, ValueError, psutil.Error):
            return psutil.Process(json.loads((self.coe.folder / "state" / "college.json").read_text())["pid"])
        return None

    @property
    def lasts(self) -> bool:
        passed_s = time.monotonic() - self.begun
        return passed_s < SECONDS or (self.counts["right"] < WANTED and passed_s < AT_MOST_S)


@pytest.fixture
def storm(coe: Coe) -> Iterator[Storm]:
    it = Storm(coe)
    yield it
    it.over.set()
    process = it.college()
    if process is not None:
        with contextlib.suppress(psutil.Error, OSError):
            process.send_signal(signal.SIGCONT)
            end(process)


def test_a_college_that_is_killed_and_stopped_with_its_workers_gives_no_wrong_answer(storm: Storm) -> None:
    served = storm.serve()
    expected = {
        question: served.chat(question, max_tokens=TOKENS).json["choices"][0]["message"]["content"]
        for question in QUESTIONS
    }
    assert len(set(expected.values())) == len(QUESTIONS), "an answer to another question would be noticed"
    storm.begun = time.monotonic()
    clients = [threading.Thread(target=storm.client, args=(n, expected), daemon=True) for n in range(CLIENTS)]
    for client in clients:
        client.start()
    storm.strikes()
    passed_s = time.monotonic() - storm.begun
    storm.over.set()
    for client in clients:
        client.join(120)
    print(f"\n{passed_s:.0f} s, {CLIENTS} clients: {dict(sorted(storm.counts.items()))}")
    assert storm.wrong == []
    assert not any(client.is_alive() for client in clients), "a request is never left without an end"
    assert storm.counts["right"] >= AT_LEAST
    assert all(storm.counts[f"{who} {how}"] for who, how in STRIKES)
    college = storm.college()
    assert college is not None
    processes = [college, *college.children()]
    assert storm.coe.run("stop").code == 0
    eventually(lambda: all(is_gone(process) for process in processes))

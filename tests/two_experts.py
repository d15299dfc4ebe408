"""`coe` as a user types it, with a college of two experts, each on a small model of its own (tests/windows/directml/make_models.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

CHECKOUT = Path(__file__).parents[1]
TIMEOUT_S = 600
"""Seconds that a command may take before it counts as hanging: with a software card on a busy machine it takes minutes."""

PROFILES = """
default_profile: lab
profiles:
  lab: {{provider: {provider}, vram_budget_mb: {budget_mb}, max_concurrent_slots: 1, context_length: 2048, preload_enabled: false}}
eviction_policy: {{min_resident_seconds: 0, retry_delay_seconds: 1}}
"""
EXPERTS = """
experts:
  first: {model: tiny-a, system_prompt: "One.", description: "the first"}
  second: {model: tiny-b, system_prompt: "Two.", description: "the second"}
"""


class Coe:
    """`coe` with folders of its own."""

    def __init__(self, folder: Path, provider: str, models: Path, budget_mb: int = 2100) -> None:
        self.folder, self.provider = folder, provider
        profiles = PROFILES.format(provider=provider, budget_mb=budget_mb)
        (folder / "config").mkdir()
        (folder / "config" / "hardware_profiles.yaml").write_text(profiles, encoding="utf-8")
        (folder / "config" / "experts.yaml").write_text(EXPERTS, encoding="utf-8")
        names = {"COE_CONFIG_DIR": "config", "COE_STATE_DIR": "state", "COE_CACHE_DIR": "cache"}
        self.environment = {**os.environ, **{key: str(folder / name) for key, name in names.items()}, "PYTHONUTF8": "1"}
        self.environment |= {"COE_MODELS_DIR": str(models), "COE_PROFILE": "lab"}

    def __call__(self, *arguments: str, code: int = 0) -> str:
        """What a command writes to stdout; it must end with ``code``."""
        return self.python("-m", "coe_cli", *arguments, code=code)

    def python(self, *arguments: str, code: int = 0) -> str:
        """What Python writes to stdout; it must end with ``code``."""
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=CHECKOUT,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=TIMEOUT_S,
        )
        assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        return done.stdout

    def json(self, *arguments: str, code: int = 0) -> Any:
        return json.loads(self(*arguments, "--format", "json", code=code))

    def ask(self, question: str, *arguments: str) -> dict[str, Any]:
        """An answer of 6 tokens, from the provider."""
        answer = self.json("ask", *arguments, "--temperature", "0", "--max-tokens", "6", question)
        assert answer["provider"] == self.provider
        assert answer["usage"]["completion_tokens"] == 6 or answer["finish_reason"] == "stop"
        return answer


LONG = "tell " * 300
"""1,500 characters, which are as many tokens: for a provider that takes prompts in pieces, three."""


class AnswersOnACard:
    """What holds on every card, with a fixture ``served``: a running college whose budget holds one of the two models."""

    def test_a_college_answers_again_and_again(self, served: Coe) -> None:
        short = [served.ask("hi", "-e", "first")["answer"] for _ in range(2)]
        assert short[0] == short[1], "the second answer on one slot is the first one's"
        long = served.ask(LONG, "-e", "first")
        assert long["usage"]["prompt_tokens"] > 1500
        assert served.ask("hi", "-e", "first")["answer"] == short[0]

    def test_a_conversation_goes_on(self, served: Coe) -> None:
        first = served.ask("hi", "-e", "first")
        second = served.ask("and now", "-c")
        assert second["usage"]["prompt_tokens"] > first["usage"]["prompt_tokens"]

    def test_a_budget_for_one_model_evicts_the_other(self, served: Coe) -> None:
        for expert, model in (("second", "tiny-b"), ("first", "tiny-a")):
            assert served.ask("hi", "-e", expert)["model"] == model
            assert [item["name"] for item in served.json("ps")["models"]] == [model]

    def test_a_killed_worker_is_replaced(self, served: Coe) -> None:
        served.ask("hi", "-e", "first")
        (worker,) = served.json("ps")["models"]
        psutil.Process(worker["pid"]).kill()
        served.ask("hi", "-e", "first")

    def test_bench(self, served: Coe) -> None:
        options = [
            "--prompt-tokens",
            "16,600",
            "--gen-tokens",
            "4",
            "-r",
            "1",
            "--warm-up",
            "0",
            "--max-length",
            "1024",
        ]
        rows = served.json("bench", "tiny-a", *options)["rows"]
        assert [row["prompt_tokens"] for row in rows] == [16, 600]

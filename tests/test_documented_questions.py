"""The questions that README, docs and --help give as examples go where one would send them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from coe_cli.runtime.folders import folders
from coe_cli.runtime.routing.embedder import EMBEDDED
from coe_cli.runtime.routing.router_cache import QuestionRouter, open_router
from coe_cli.runtime.settings import load_catalog

ROOT = Path(__file__).resolve().parent.parent
GENERAL, PYTHON, SQL, DESIGN = "general_reasoner", "python_backend", "sql_query", "architecture_expert"

ACCEPTED: dict[str, set[str]] = {
    "What is a deadlock?": {GENERAL, PYTHON},
    "What is a mutex?": {GENERAL, PYTHON},
    "How do I use git rebase?": {GENERAL},
    "kubernetes manifest for nginx": {GENERAL, DESIGN},
    "A regex for ISO dates": {PYTHON, GENERAL},
    "A bash loop over *.png": {GENERAL, PYTHON},
    "What went wrong here?": {GENERAL, PYTHON},
    "What is the capital of France?": {GENERAL},
    "Name a colour": {GENERAL},
    "Summarise this": {GENERAL},
    "Which customers ordered twice?": {SQL},
    "How do I join two tables?": {SQL},
    "A function that merges two sorted lists": {PYTHON},
}
BOTH = "Write the SQL for weekly sign-ups and a Python plot of it"

_EXAMPLE = re.compile(r'\bcoe (?:ask|route)\b(?P<options>(?: [^"`\n|]+)?) "(?P<question>[^"\n]+)"')
_NAMED = re.compile(r" (?:-e|-m|--experts) ")


@pytest.fixture(scope="module")
def router() -> QuestionRouter:
    return open_router(load_catalog([ROOT / "profiles" / "experts.yaml"]), folders(), print, embedder=EMBEDDED)


def test_every_documented_question_is_judged_here() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "coe_cli").rglob("*.py")]
    routed = [
        match["question"]
        for page in pages
        for match in _EXAMPLE.finditer(page.read_text(encoding="utf-8"))
        if not _NAMED.search(match["options"]) and match["question"] != "…"
    ]
    assert len(routed) >= 10
    assert {*routed} <= {*ACCEPTED, BOTH}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("question", ACCEPTED)
def test_a_documented_question_goes_to_its_expert(router: QuestionRouter, question: str) -> None:
    decision = router.route(question)
    assert {expert.name for expert in decision.experts} <= ACCEPTED[question], decision.ranking[:3]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_documented_question_of_two_domains_goes_to_both(router: QuestionRouter) -> None:
    assert {expert.name for expert in router.route(BOTH).experts} == {SQL, PYTHON}

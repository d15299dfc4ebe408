"""Questions to judge the router by, and the same questions without the marks of where they come from."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

_DATA = Path(__file__).parent / "data"
UNSEEN = (_DATA / "routing_unseen.tsv", _DATA / "routing_everyday.tsv")
OTHER_PENS = _DATA / "routing_other_pens.tsv"
HAND_FORMS = {"hand", "bare", "long", "code", "looks_two", "smalltalk", "trivia", "task", "polite", "misspelt"}
"""Forms of questions in nobody's format but the asker's."""

_MARKS = [
    re.compile(r"^Write a SQL query:\s*", re.IGNORECASE),
    re.compile(r"^In our [\w ]+ database:\s*", re.IGNORECASE),
    re.compile(r"^Write a Python function \w+\.\s*"),
    re.compile(r"^\s*(?:from|import) .*\n", re.MULTILINE),
    re.compile(r"^\s*def \w+\(.*\).*:\s*\n", re.MULTILINE),
    re.compile(r"^\s*>>> .*(?:\n\s*[^\s>].*)?", re.MULTILINE),
    re.compile(r'"""|\'\'\''),
    re.compile(r"^(?:Is this hearsay\?|How strong is this trademark\?|What does this clause mean:)\s*"),
    re.compile(r"^(?:Does th(?:e|is) (?:clause|text)|Is this a|May (?:it|the recipient))[^?]*\?\s*"),
]


def development(folder: Path) -> list[dict[str, Any]]:
    """``dev.jsonl`` and ``dev_multi.jsonl``: ``text``, ``experts`` (one or two), ``expert`` (the first), ``form``."""
    questions = []
    for name in ("dev.jsonl", "dev_multi.jsonl"):
        for line in (folder / name).read_text(encoding="utf-8").splitlines():
            question = json.loads(line)
            experts = question.get("experts", [question["expert"]])
            form = question.get("form") or question["kind"]
            questions.append({"text": question["text"], "experts": experts, "expert": experts[0], "form": form})
    return questions


def unseen(part: str) -> list[dict[str, Any]]:
    """The questions of one part (``a``, ``b``, ``c1``, ``c2``; everyday: ``d1``, ``d2``, ``e``, ``f1``, ``f2``, ``g``) in the same shape.

    Where several experts are equally right they are all in ``right``.
    """
    questions = []
    for line in (line for path in UNSEEN for line in path.read_text(encoding="utf-8").splitlines()):
        if line.startswith("#"):
            continue
        its_part, experts, form, text = line.split("\t")
        if its_part == part:
            right = experts.split("|")
            names = right[0].split("+")
            question = {"text": text.replace("\\n", "\n"), "experts": names, "expert": names[0], "form": form}
            questions.append(question | {"right": right})
    return questions


def other_pens(source: Path) -> list[dict[str, Any]]:
    """The labelled questions of ``source``, one of the files that ``routing_other_pens.tsv`` names: each instruction and its input.

    Of ``user_oriented_instructions.jsonl`` the first 400 characters, as it was judged first.
    """
    texts = {}
    for line in source.read_text(encoding="utf-8").split("\n"):
        if line:
            task = json.loads(line)
            if "instances" in task:
                text = f"{task['instruction']}\n{task['instances'][0]['input']}".strip()
            else:
                turn = task["turns"][0] if "turns" in task else task["prompt"]
                text = turn["content"] if isinstance(turn, dict) else turn
            name = str(task["id"] if "id" in task else task["question_id"])
            texts[name] = text[:400] if name.startswith("user_oriented") else text
    labels = [line.split("\t") for line in OTHER_PENS.read_text(encoding="utf-8").splitlines() if line[0] != "#"]
    return [
        {"text": texts[name], "experts": right[:1], "expert": right[0], "form": form, "right": right}
        for name, experts, form in labels
        if name in texts
        for right in [experts.split("|")]
    ]


def is_right(question: dict[str, Any], expert: str) -> bool:
    """Whether ``expert`` is one of those that should answer."""
    return expert in question.get("right", [question["expert"]]) or expert == question["expert"]


def without_marks(questions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The questions that have marks of their source, without them: prefixes, signatures, doctests, stock questions."""
    bare = []
    for question in questions:
        text = question["text"]
        for mark in _MARKS:
            text = mark.sub("", text)
        if text.strip() and text != question["text"]:
            bare.append({**question, "text": text.strip()})
    return bare

"""How well questions are routed: `python benchmarks/routing.py [DATA]` with dev.jsonl and dev_multi.jsonl in DATA.

The shipped router, trained on the shipped examples alone, is judged by the unseen questions of `data/routing_unseen.tsv`,
by the development set where DATA names it, and by both without the marks of their sources. With --folds, four fifths of
the development set are added to the training and the fifth that was left out is judged, five times; temperature and
two-domain detector are fitted inside each training part (nested cross-validation). With --own the shipped examples are
judged by each other in the same way.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pairs import print_table
from routing_data import HAND_FORMS, development, is_right, other_pens, unseen, without_marks

from coe_cli.core.models.catalog import GENERAL_EXPERT
from coe_cli.core.routing.router import Decision, Router
from coe_cli.core.routing.router_examples import TrainingSet
from coe_cli.core.routing.router_features import bounded
from coe_cli.runtime.folders import catalog_paths, folders
from coe_cli.runtime.routing.router_cache import QuestionRouter, open_router, training_set
from coe_cli.runtime.routing.router_training import train_router
from coe_cli.runtime.settings import load_catalog


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--unseen", default="a,b,c1,c2", help="parts of the unseen questions to judge by")
    parser.add_argument("--other-pens", type=Path, help="judge only by this file of other people's questions")
    parser.add_argument("--folds", type=int, default=0)
    parser.add_argument("--own", action="store_true", help="cross-validate the shipped examples themselves too")
    parser.add_argument("--errors", action="store_true", help="print each wrong decision")
    arguments = parser.parse_args()
    catalog = load_catalog(catalog_paths())
    shipped = open_router(catalog, folders(), lambda note: print(note, file=sys.stderr))
    sets = {f"unseen questions, part {part}": unseen(part) for part in arguments.unseen.split(",")}
    if arguments.other_pens:
        everyone = other_pens(arguments.other_pens)
        everyday = [question for question in everyone if GENERAL_EXPERT in question["right"]]
        specialists = [question for question in everyone if GENERAL_EXPERT not in question["right"]]
        sets = {"other pens": everyone, "of these everyday": everyday, "of these for specialists": specialists}
    columns: dict[str, dict[str, str]] = {}
    everything = development(arguments.data) if arguments.data else []
    if everything:
        sets["development questions"] = everything
    for title, questions in sets.items():
        columns[title] = report(title, questions, routed(shipped, questions), arguments.errors)
        bare = without_marks(questions)
        before = {
            question["text"]: decision for question, decision in zip(questions, routed(shipped, questions), strict=True)
        }
        marked = [q for q in questions if without_marks([q])]
        after = accuracy(list(zip(bare, routed(shipped, bare), strict=True)))
        whole = accuracy([(q, before[q["text"]]) for q in marked])
        told = f"{whole:.4f}, {after:.4f} of {len(bare)}"
        columns[title]["top-1 with and without marks of the source, of those that have any"] = told

    if arguments.own:
        examples = training_set(catalog)
        written = [
            {"text": t, "experts": [examples.roles[r]], "expert": examples.roles[r], "form": "hand"}
            for t, r in examples.single
        ] + [
            {"text": t, "experts": [examples.roles[r] for r in p], "expert": examples.roles[p[0]], "form": "two_domain"}
            for t, p in examples.double
        ]
        untaught = TrainingSet(examples.roles, [], examples.terms, [])
        title = "shipped examples, each judged by those of the other folds"
        columns[title] = report(title, written, cross_validated(shipped, untaught, written, 5), False)

    if arguments.folds and everything:
        held_out = cross_validated(shipped, training_set(catalog), everything, arguments.folds)
        title = f"with development folds ({arguments.folds})"
        columns[title] = report(title, everything, held_out, arguments.errors)
    measures = dict.fromkeys(measure for column in columns.values() for measure in column)
    rows = [(measure, *(column.get(measure, "") for column in columns.values())) for measure in measures]
    print_table(("measure", *columns), rows)


def routed(router: QuestionRouter, questions: list[dict[str, Any]]) -> list[Decision]:
    return router.route_many([question["text"] for question in questions])


def cross_validated(
    shipped: QuestionRouter, examples: TrainingSet, everything: list[dict[str, Any]], folds: int
) -> list[Decision]:
    import numpy as np

    known: dict[str, Any] = {}

    def embed(texts: Any) -> Any:
        missing = [text for text in dict.fromkeys(texts) if text not in known]
        if missing:
            known.update(zip(missing, shipped.embedder.embed(missing), strict=True))
        return np.stack([known[text] for text in texts])

    position = {role: index for index, role in enumerate(examples.roles)}
    fold = np.random.default_rng(7).permutation(len(everything)) % folds
    decisions: list[Decision | None] = [None] * len(everything)
    for held in range(folds):
        single, double = list(examples.single), list(examples.double)
        for index in np.flatnonzero(fold != held):
            roles = [position[name] for name in everything[index]["experts"]]
            if len(roles) == 1:
                single.append((everything[index]["text"], roles[0]))
            else:
                double.append((everything[index]["text"], (roles[0], roles[1])))
        weights = train_router(TrainingSet(examples.roles, single, examples.terms, double), embed)
        router = Router(weights)
        for index in np.flatnonzero(fold == held):
            whole = bounded(everything[index]["text"])
            pieces = [whole, *router.clauses_to_embed(whole, embed([whole])[0])]
            decisions[index] = router.route(pieces, embed(pieces))
    return [decision for decision in decisions if decision is not None]


def report(title: str, everything: list[dict[str, Any]], decisions: list[Decision], errors: bool) -> dict[str, str]:
    """Measure → its value in words; with ``errors`` each wrong decision on stderr."""
    pairs = list(zip(everything, decisions, strict=True))
    single = [(q, d) for q, d in pairs if q["form"] not in ("two_domain", "trivial")]
    hand = [(q, d) for q, d in single if q["form"] in HAND_FORMS]
    alone = [(q, d) for q, d in pairs if q["form"] != "two_domain"]
    general = [(q["expert"] == GENERAL_EXPERT, d.experts[0].name == GENERAL_EXPERT) for q, d in alone]
    found = [(q["form"] == "two_domain", d.kind == "multi") for q, d in pairs]
    small = [(q["form"] == "two_domain", d.kind == "multi") for q, d in pairs if q["form"] in ("two_domain", "trivial")]
    right = [
        set(q["experts"]) == {e.name for e in d.experts}
        for q, d in pairs
        if q["form"] == "two_domain" and d.kind == "multi"
    ]
    unsure = [(q, d) for q, d in single if d.unsure]
    wrong = sum(d.ranking[0].name != q["expert"] for q, d in unsure)
    forms = Counter(q["form"] for q, d in single if not is_right(q, d.ranking[0].name))
    measures = {
        "top-1 (ranking)": f"{accuracy(single):.4f} of {len(single)}",
        "top-1 (chosen first)": f"{sum(is_right(q, d.experts[0].name) for q, d in single) / len(single):.4f}",
        "macro-F1": f"{macro_f1(single):.4f}",
        "hand-written, top-1": f"{accuracy(hand):.4f} of {len(hand)}",
        "general or expert, F1": f"{f1(general):.4f} of {len(alone)}",
        "two domains among all: precision, recall": precision_and_recall(found),
        "two domains among these and trivial ones": precision_and_recall(small),
        "both experts right": f"{sum(right)} of {len(right)}",
        "unsure, of which the first guess was wrong": f"{len(unsure)}, {wrong}",
        "expected calibration error": f"{calibration_error(single):.3f}",
        "errors by form": ", ".join(f"{count} {form}" for form, count in forms.items()) or "none",
    }
    if errors:
        sys.stderr.write(f"\n== {title}\n")
        write_errors(pairs)
    return measures


def precision_and_recall(found: list[tuple[bool, bool]]) -> str:
    """Of (is so, was said to be so)."""
    hits, flagged, real = sum(map(all, found)), sum(said for _, said in found), sum(so for so, _ in found)
    return f"{hits / max(1, flagged):.3f}, {hits / max(1, real):.3f}"


def write_errors(pairs: list[tuple[dict[str, Any], Decision]]) -> None:
    for question, decision in pairs:
        multi = question["form"] == "two_domain"
        if (decision.kind == "multi") != multi or (not multi and not is_right(question, decision.ranking[0].name)):
            shown = [(e.name[:9], round(e.probability, 2)) for e in decision.ranking[:2]]
            experts = "+".join(question["experts"])
            facts = (question["form"], experts, decision.kind, decision.multi_probability, shown)
            text = " ".join(question["text"].split())[:110]
            sys.stderr.write(f"   {' '.join(map(str, facts))}\n       {text}\n")


def accuracy(pairs: list[tuple[dict[str, Any], Decision]]) -> float:
    return sum(is_right(q, d.ranking[0].name) for q, d in pairs) / max(1, len(pairs))


def macro_f1(pairs: list[tuple[dict[str, Any], Decision]]) -> float:
    roles = sorted({q["expert"] for q, _ in pairs})
    scores = [f1([(q["expert"] == role, d.ranking[0].name == role) for q, d in pairs]) for role in roles]
    return sum(scores) / len(scores)


def f1(pairs: list[tuple[bool, bool]]) -> float:
    both, either = sum(map(all, pairs)), sum(a + b for a, b in pairs)
    return 2 * both / either if either else 0.0


def calibration_error(pairs: list[tuple[dict[str, Any], Decision]]) -> float:
    bins: dict[int, list[tuple[float, bool]]] = {}
    for question, decision in pairs:
        top = decision.ranking[0]
        bins.setdefault(min(9, int(top.probability * 10)), []).append((top.probability, top.name == question["expert"]))
    gaps = (abs(sum(p for p, _ in some) - sum(ok for _, ok in some)) for some in bins.values())
    return sum(gaps) / len(pairs)


if __name__ == "__main__":
    main()

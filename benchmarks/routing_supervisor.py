"""Can the supervisor tell a question of two domains from one of one? `python benchmarks/routing_supervisor.py [MODEL]`.

Asks the model, in a college of its own, about the two-domain questions of `data/routing_unseen.tsv` and as many others,
and prints precision, recall and the time a question takes, beside those of the trained detector.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from routing_data import unseen

from coe_cli.runtime.folders import catalog_paths, folders
from coe_cli.runtime.routing.router_cache import open_router
from coe_cli.runtime.settings import load_catalog

PROMPTS = {
    "one or two": "How many different kinds of expert does this request need, one or two? Answer with one word.\n\n{}",
    "yes or no, with examples": (
        "Does the request ask for two things from two different fields? Answer yes or no.\n\n"
        "Request: Write a query for late orders and a Python chart of them\nAnswer: yes\n\n"
        "Request: How do I join two tables?\nAnswer: no\n\n"
        "Request: Draft the clause and compute the interest\nAnswer: yes\n\n"
        "Request: What are the signs of a stroke?\nAnswer: no\n\n"
        "Request: {}\nAnswer:"
    ),
}
YES = ("two", "yes", "2")


def main() -> None:
    model = sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m"
    everything = [*unseen("a"), *unseen("b")]
    double = [q["text"] for q in everything if q["form"] == "two_domain"]
    looks = [q["text"] for q in everything if q["form"] in ("looks_two", "long")][: len(double)]
    router = open_router(load_catalog(catalog_paths()), folders(), print)
    found = [decision.kind == "multi" for decision in router.route_many([*double, *looks])]
    print("| who | precision | recall | a question |\n|---|---|---|---|")
    print(row("the trained detector", found, len(double), None))
    with tempfile.TemporaryDirectory() as state:
        os.environ["COE_STATE_DIR"] = state
        from coe_cli.runtime.college.chat_request import ChatRequest
        from coe_cli.runtime.college.college_events import Delta
        from coe_cli.runtime.server import college_client
        from coe_cli.runtime.worker.protocol import ChatMessage, Sampling

        client = college_client.find_or_start()
        try:
            for name, prompt in PROMPTS.items():
                said, begin = [], time.perf_counter()
                for text in [*double, *looks]:
                    request = ChatRequest(
                        [ChatMessage("user", prompt.format(text))],
                        model=model,
                        max_tokens=4,
                        sampling=Sampling(temperature=0),
                    )
                    answer = "".join(event.text for event in client.ask(request, 120) if isinstance(event, Delta))
                    said.append(answer.strip().lower().startswith(YES))
                each = (time.perf_counter() - begin) / len(said)
                print(row(f"{model}, {name}", said, len(double), each))
        finally:
            client.stop()
            college_client.wait_until_gone(10)


def row(name: str, found: list[bool], doubles: int, seconds: float | None) -> str:
    hits, flagged = sum(found[:doubles]), sum(found)
    took = "" if seconds is None else f"{seconds:.2f} s"
    return f"| {name} | {hits / max(1, flagged):.2f} | {hits / doubles:.2f} | {took} |"


if __name__ == "__main__":
    main()

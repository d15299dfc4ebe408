"""One college over a models folder that holds every hostile model: each is an error by name, and the good one answers."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from conftest import Coe
from model_store.tiny_model import write_tiny_model
from serving import Response, Served, serving

from hostile.zoo import CONFIGURATIONS, FOLDERS, compile_library, make_hostile

ZOO = CONFIGURATIONS | FOLDERS


@pytest.fixture
def beasts(bare_coe: Coe) -> dict[str, str]:
    """Models by name → what a refusal names. Beside each lies the library that some of them ask for."""
    library = bare_coe.folder / "x.so"
    if not compile_library(library, bare_coe.folder / "loaded"):
        library.write_bytes(b"")
    named = {}
    for number, (make, names) in enumerate(ZOO.values()):
        name = f"beast-{number}"
        try:
            folder = make_hostile(bare_coe.models / name, make)
        except pytest.skip.Exception:  # a link or a FIFO, which this system does not make
            shutil.rmtree(bare_coe.models / name)
            continue
        shutil.copyfile(library, folder / "x.so")
        named[name] = names
    write_tiny_model(bare_coe.models / "good")
    return named


def _ask(served: Served, model: str) -> Response:
    return served.request(
        "POST",
        "/v1/chat/completions",
        {"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4},
    )


def _written(folder: Path) -> set[Path]:
    """The library's mark, and what lies beside the models, where some of them want to write."""
    return {*folder.glob("loaded"), *(folder / "models" / "outside").iterdir()}


@pytest.mark.long
def test_a_college_over_the_whole_zoo_refuses_each_by_name_and_answers_with_the_good_one(
    bare_coe: Coe, beasts: dict[str, str]
) -> None:
    before = _written(bare_coe.folder)
    with serving(bare_coe) as served:
        for name, named in beasts.items():
            response = _ask(served, name)
            assert response.status == 500, (name, named, response.body)
            assert name in response.error["message"], (named, response.error)
            assert named in response.error["message"], (name, response.error)
        first = next(iter(beasts))
        asked = bare_coe.run("ask", "-m", first, "Hi", COE_NO_SERVE="0")
        assert asked.code == 4 and first in asked.stderr
        assert served.snapshot()["models"] == [], "no worker was started for any of them"
        assert _ask(served, "good").status == 200
        assert served.request("GET", "/healthz").status == 200
    assert _written(bare_coe.folder) == before

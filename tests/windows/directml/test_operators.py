"""Each operator of a decoder on DirectML, against the CPU provider, with fallback to the CPU forbidden.

A session takes a second there, so cases that DirectML takes share one; each that it refuses has its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import groupby

import numpy as np
import onnxruntime as ort
import pytest
from operator_cases import CASES, Case, feeds_of, model_of

TAKEN = [case for case in CASES if case.outcome != "refused"]
REFUSED = [case for case in CASES if case.outcome == "refused"]
DML = [("DmlExecutionProvider", {"device_id": 0})]


def run(cases: list[Case], providers: Sequence[object], *, alone: bool) -> dict[str, np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if alone:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    session = ort.InferenceSession(model_of(cases), options, providers=providers)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds_of(cases)), strict=True))


@cache
def results() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """What the CPU provider and DirectML give for all outputs of the cases that DirectML takes."""
    expected: dict[str, np.ndarray] = {}
    got: dict[str, np.ndarray] = {}
    for _, group in groupby(sorted(TAKEN, key=lambda case: case.opset), key=lambda case: case.opset):
        cases = list(group)
        expected |= run(cases, ["CPUExecutionProvider"], alone=False)
        got |= run(cases, DML, alone=True)
    return expected, got


def difference(case: Case) -> float:
    """The largest difference of any output from the CPU's, relative where it is large."""
    expected, got = results()
    worst = 0.0
    for name in filter(None, map(case.own, case.outputs)):
        one, other = np.asarray(expected[name], np.float64), np.asarray(got[name], np.float64)
        worst = max(worst, float(np.max(np.abs(one - other) / (1 + np.abs(one)), initial=0.0)))
    return worst


@pytest.mark.parametrize("case", TAKEN, ids=[case.name for case in TAKEN])
def test_what_directml_computes(case: Case) -> None:
    found = difference(case)
    assert (found <= case.tolerance) == (case.outcome == "equal"), f"differs by {found:.4f}"


@pytest.mark.parametrize("case", REFUSED, ids=[case.name for case in REFUSED])
def test_what_directml_refuses(case: Case) -> None:
    with pytest.raises(Exception, match="CPU EP"):
        run([case], DML, alone=True)

"""What of a decoder graph a provider refuses, ignores or computes wrongly, by the provider's graph rules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

from msgspec import Struct

from coe_cli.core.findings import Finding, error, warning
from coe_cli.core.models.model_spec import ModelSpec
from coe_cli.core.models.onnx_graph import type_name
from coe_cli.core.models.onnx_records import Node, Records
from coe_cli.core.providers import GraphRules, spec_of

ProblemKind = Literal["refused", "ignored_rotation", "fp16_norm"]

RMS_NORMS: Final = {"SimplifiedLayerNormalization": 1, "SkipSimplifiedLayerNormalization": 2}
"""RMS norms and which of their inputs is the weight."""

_CONVERT: Final = "Convert it again from its source: coe models import SOURCE --name NAME --force"
_MS: Final = "com.microsoft"
_FOLDED: Final = "Constant"
"""ONNX Runtime makes initializers of these nodes."""


class GraphProblem(Struct, frozen=True):
    """One kind of problem: ``node`` is the first that has it, ``count`` how many have it.

    ``refused``: the provider has no kernel for ``operator``. ``ignored_rotation``: it ignores ``do_rotary``.
    ``fp16_norm``: it computes this RMS norm in fp16, which overflows where the root mean square passes 256.
    """

    kind: ProblemKind
    operator: str
    node: str
    count: int
    detail: str = ""

    @property
    def rewritable(self) -> bool:
        """Whether ``coe models optimize`` knows another form (runtime/conversion/fit_graph.py)."""
        return self.kind != "refused" or self.operator == "GatherBlockQuantized"


def problem_findings(spec: ModelSpec, problems: Sequence[GraphProblem]) -> list[Finding]:
    """Each problem in words, with what to do: an error, or a warning for norms, which are wrong for large values only."""
    label = spec_of(spec.provider).label
    findings = []
    for problem in problems:
        where = f"node `{problem.node}`" + (f" and {problem.count - 1} more" if problem.count > 1 else "")
        name = f"{problem.operator} {problem.detail}".strip()
        fix = f"coe models optimize {spec.name}" if problem.rewritable else _CONVERT
        if problem.kind == "refused":
            findings.append(error("operators", f"{label} has no {name}, so it refuses the model: {where}", fix))
        elif problem.kind == "ignored_rotation":
            findings.append(
                error("operators", f"{label} ignores do_rotary of {name} and answers wrongly: {where}", fix)
            )
        else:
            message = f"{label} computes {name} in fp16, wrongly above a root mean square of 256: {where}"
            findings.append(warning("operators", message, fix))
    return findings


def graph_problems(records: Records, rules: GraphRules) -> list[GraphProblem]:
    """The problems of a graph, one for each kind and operator, refused operators first."""
    types = {tensor.name: type_name(tensor.element_type) for tensor in records.initializers()}
    types |= {value.name: type_name(value.element_type) for value in (*records.inputs(), *records.values())}
    found: dict[tuple[ProblemKind, str, str], GraphProblem] = {}
    for node in records.nodes():
        for kind, detail in _problems_of(node, types, records.opsets, rules):
            key = (kind, node.operator, detail)
            before = found.get(key)
            name = before.node if before else node.name or ", ".join(node.inputs[:1])
            found[key] = GraphProblem(kind, node.operator, name, before.count + 1 if before else 1, detail)
    return sorted(found.values(), key=lambda problem: problem.kind != "refused")


def _problems_of(
    node: Node, types: dict[str, str], opsets: dict[str, int], rules: GraphRules
) -> list[tuple[ProblemKind, str]]:
    problems: list[tuple[ProblemKind, str]] = []
    if rules.operators is not None and node.operator != _FOLDED:
        support = rules.operators.get((node.domain, node.operator))
        opset = opsets.get(node.domain, 1)
        first = types.get(node.inputs[0]) if node.inputs else None
        bits = node.numbers.get("bits", 4) if node.operator == "MatMulNBits" else None
        if support is None:
            problems.append(("refused", ""))
        elif not support.takes(opset):
            problems.append(("refused", f"of opset {opset}"))
        elif first is not None and first not in support.types:
            problems.append(("refused", f"for {first}"))
        elif bits is not None and rules.matrix_bits and bits not in rules.matrix_bits:
            problems.append(("refused", f"with {bits} bits"))
    if not rules.rotation_in_attention and node.numbers.get("do_rotary") and node.domain == _MS:
        problems.append(("ignored_rotation", ""))
    weight = RMS_NORMS.get(node.operator)
    if rules.norms_in_fp32 and weight is not None and types.get((*node.inputs, "", "", "")[weight]) == "float16":
        problems.append(("fp16_norm", ""))
    return problems

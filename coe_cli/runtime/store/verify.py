"""Everything that can be checked of one model on disk: files, configuration, tokenizer, and what it really answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coe_cli.core.findings import Finding, Level, error, ok, warning
from coe_cli.core.models.genai_rules import printable
from coe_cli.core.models.graph_check import problem_findings
from coe_cli.core.models.model_spec import GENAI_CONFIG, ModelSpec
from coe_cli.core.models.onnx_graph import GraphFacts
from coe_cli.core.names import counted
from coe_cli.core.providers import host, on_host, spec_of
from coe_cli.errors import CoeError
from coe_cli.providers.installed import installed_providers
from coe_cli.runtime.model_folder.graph_files import check_model, graph_needs, read_graph
from coe_cli.runtime.model_folder.model_ends import end_finding
from coe_cli.runtime.model_folder.model_files import check_safe, read_config
from coe_cli.runtime.model_folder.on_disk import spec_from_folder
from coe_cli.runtime.model_folder.tokenizer_files import chat_template
from coe_cli.runtime.progress import OnProgress, Step, ignore
from coe_cli.runtime.prompts.prompt_messages import RAW_TEMPLATE, Prepare
from coe_cli.runtime.prompts.prompts import own
from coe_cli.runtime.regular_file import lies_in
from coe_cli.runtime.store import golden_answer
from coe_cli.runtime.store.integrity import read_manifest, sha256_of
from coe_cli.runtime.store.older_recipe import older_recipe
from coe_cli.runtime.worker.protocol import ChatMessage

_SAMPLE = "Grüße, 世界! def f(x): return x ** 2  # 3.14"
_SAMPLE_QUESTIONS = ("What is 2 + 2?", "Who are you?")


def verify(
    name: str,
    folder: Path,
    state_dir: Path,
    *,
    run: bool = True,
    accept: bool = False,
    on_progress: OnProgress = ignore,
) -> list[Finding]:
    """Check a model; with ``run`` also load it and compare its answer with the recorded one.

    The answer is recorded in ``state_dir`` at the first run on a provider, and anew with ``accept``; nothing else is
    written.
    """
    on_progress(Step("Reading the configuration", 0, None))
    again = f"coe models pull {name} --force"
    try:
        spec = spec_from_folder(name, folder)
        facts = read_graph(folder / spec.graph, past_key=spec.past_key, logits=spec.logits)
    except CoeError as problem:
        return [error("config", problem.message, problem.hint)]
    except (OSError, ValueError) as problem:
        return [error("graph", str(problem), again)]
    try:
        check_safe(name, folder)
    except CoeError as problem:
        return [error("external data", problem.message, problem.hint)]
    config = read_config(name, folder)
    if foreign := _foreign_operators(folder, config.files):
        return foreign
    findings = [
        *(warning("config", note, "It is left out for ONNX Runtime GenAI.") for note in config.notes),
        *_files(folder, facts, again, on_progress),
        *_consistency(spec, facts, again),
        *_tokenizer(spec, folder, again),
        end_finding(folder, config),
        *filter(None, [older_recipe(name, folder)]),
        *_graph_rules(spec),
    ]
    if run and spec.provider not in installed_providers():
        not_here = f"not loaded: it was built for {spec.provider}, which is not installed here"
        findings.append(
            warning("golden answer", not_here, f"Run it where {spec.provider} is: coe models verify {name}")
        )
    elif run and not any(finding.level == "error" for finding in findings):
        on_progress(Step("Loading it and asking", 0, None))
        if accept:
            golden_answer.forget(state_dir, name)
        findings.append(check_golden(spec, state_dir))
        # The host's own provider has no paged attention, so there is nothing to compare with.
        if not on_host(spec.provider) and not facts.block_tokens and findings[-1].level is not Level.ERROR:
            findings.append(check_agreement(spec, on_progress))
    return findings


def check_agreement(spec: ModelSpec, on_progress: OnProgress = ignore) -> Finding:
    """Compare the first step's logits of 20 prompts between the model's provider and the host's own, on the same files.

    A driver, a card or a graph that computes something else shows here at the first run, before any answer is recorded.
    """
    from coe_cli.runtime.conversion.agreement import PROMPTS, agreement
    from coe_cli.runtime.worker.first_logits import first_logits

    provider, own = spec_of(spec.provider), host()
    runs = []
    for which in (own, provider):
        on_progress(Step(f"Comparing {provider.label} with {own.label}: asking {which.label}", 0, None))
        try:
            runs.append(first_logits(spec, which.name, PROMPTS))
        except CoeError as problem:
            said = f"cannot be compared with {own.label}: {problem.message}"
            return warning("agreement", said, problem.hint or f"Run it again: coe models verify {spec.name}")
    found = agreement(*runs)
    if found.agrees:
        return ok("agreement", f"{provider.label} and {own.label} give {found}")
    return error(
        "agreement",
        f"{provider.label} computes something else than {own.label} from the same files: {found}",
        f"Update the graphics driver; if that does not help: coe models optimize {spec.name}",
    )


def check_golden(spec: ModelSpec, state_dir: Path) -> Finding:
    """Load the model and compare its greedy answer with the one recorded on this provider; record the first one."""
    try:
        actual = golden_answer.run_golden(spec)
        expected = golden_answer.recorded(state_dir, spec.name, spec.provider)
        where = f"on {spec.provider} (OGA {actual.oga_version})"
        if expected is None or expected.graph_sha256 != actual.graph_sha256:
            try:
                golden_answer.record(state_dir, spec.name, actual)
            except CoeError as problem:
                said = f"loads and answers {where}, and that cannot be recorded: {problem.message}"
                return warning("golden answer", said, problem.hint)
            return ok("golden answer", f"loads and answers {where}; its answer is recorded for the next time")
        difference = golden_answer.first_difference(expected, actual)
        if difference is None:
            return ok("golden answer", f"loads and gives the recorded tokens {where}")
        if expected.oga_version != actual.oga_version:
            return warning(
                "golden answer",
                f"answers otherwise {where} than recorded with OGA {expected.oga_version}: {difference}",
                f"If its answers are sound, accept them: coe models verify {spec.name} --accept",
            )
        return error(
            "golden answer",
            f"does not give the recorded tokens {where}: {difference}",
            "The driver or the card computes something else now: update the driver or go back to the one before, "
            f"then: coe models pull {spec.name} --force",
        )
    except CoeError as problem:
        return error("golden answer", problem.message, problem.hint)


def _files(folder: Path, facts: GraphFacts, again: str, on_progress: OnProgress) -> list[Finding]:
    wrong: list[tuple[str, str]] = []
    for location, size in facts.external.items():
        path = folder / location
        if not lies_in(path, folder):
            outside = f"the graph reads {location}, outside of the model's folder"
            wrong.append((outside, f"Do not load it; {again}"))
        elif not path.is_file():
            wrong.append((f"{path} is missing", again))
        elif path.stat().st_size < size:
            wrong.append((f"{path} has {path.stat().st_size} bytes, the graph reads {size}", again))
    count = len(facts.external)
    whole = f"{counted(count, 'file')}, complete" if count else "none: the weights are in the graph"
    findings = [error("external data", said, hint) for said, hint in wrong] or [ok("external data", whole)]
    return [*findings, _digests(folder, again, on_progress)]


def _digests(folder: Path, again: str, on_progress: OnProgress) -> Finding:
    manifest = read_manifest(folder)
    if manifest is None:
        return warning("digests", "there is no record of this model's files to compare them with", f"Fetch it: {again}")
    files: dict[str, Any] = manifest["files"]
    wrong: list[str] = []
    for file, facts in files.items():
        on_progress(Step(f"Reading {file}", 0, None))
        path = folder / file
        if not path.is_file():
            wrong.append(f"{file} is missing")
        elif not isinstance(facts, dict) or sha256_of(path) != facts.get("sha256"):
            wrong.append(f"{file} has changed")
    if wrong:
        return error("digests", "; ".join(wrong), again)
    return ok("digests", f"{len(files)} files have their recorded SHA-256")


def _consistency(spec: ModelSpec, facts: GraphFacts, again: str) -> list[Finding]:
    shape = spec.shape
    pairs = [
        ("layers", shape.num_hidden_layers, facts.layers or None),
        ("KV heads", shape.num_key_value_heads, facts.kv_heads),
        ("head size", shape.head_size, facts.head_size),
        ("vocabulary", shape.vocab_size, facts.vocab_size),
    ]
    wrong = [
        f"{GENAI_CONFIG} says {said} {what}, the graph has {has}"
        for what, said, has in pairs
        if has not in (None, said)
    ]
    if wrong:
        return [error("config", "; ".join(wrong), again)]
    return [
        ok(
            "config",
            f"agrees with the graph: {shape.num_hidden_layers} layers, {shape.num_key_value_heads} KV heads, "
            f"vocabulary {shape.vocab_size}",
        )
    ]


def _foreign_operators(folder: Path, files: Sequence[str]) -> list[Finding]:
    """An error for each operator set that only a library of somebody else has."""
    found: dict[str, str] = {}
    for file in files:
        if not file.endswith(".onnx") or not (folder / file).is_file():
            continue
        for operator, node in graph_needs(folder / file).unknown.items():
            where = f"node `{printable(node)}` in {file}" if node else f"a node in {file}"
            found.setdefault(operator.domain, f"{where} is a `{printable(f'{operator.domain}.{operator.name}')}`")
    return [
        error(
            "graph",
            f"{said}, which ONNX Runtime does not have and coe loads no libraries for",
            "Use a build of the model that needs no custom operators.",
        )
        for said in found.values()
    ]


def _graph_rules(spec: ModelSpec) -> list[Finding]:
    """Whether the model's provider takes every node of its graph and computes it rightly; asked of no device."""
    provider = spec_of(spec.provider)
    if provider.graph.operators is None:
        return []
    problems = check_model(spec)
    return problem_findings(spec, problems) or [ok("operators", f"{provider.label} has all that the graph holds")]


def _tokenizer(spec: ModelSpec, folder: Path, again: str) -> list[Finding]:
    path = folder / "tokenizer.json"
    if not path.is_file():
        return [warning("tokenizer", f"{path} is missing, so only the load below tells whether it works", again)]
    asked = Prepare(
        spec.name, str(folder), [ChatMessage("user", _SAMPLE)], spec.context_length, RAW_TEMPLATE, back=True
    )
    try:
        made = own().prepare(asked)
    except CoeError as problem:
        return [error("tokenizer", problem.message, problem.hint)]
    if (highest := max(made.ids)) >= spec.shape.vocab_size:
        return [error("tokenizer", f"gives token {highest}, the model knows {spec.shape.vocab_size}", again)]
    findings = (
        [ok("tokenizer", f"{made.tokens} tokens, gives a text back as it was")]
        if made.text.strip() == _SAMPLE
        else [
            warning("tokenizer", "does not give a text back as it was", "Compare an answer with the original model's.")
        ]
    )
    return [*findings, _template(spec, folder)]


def _template(spec: ModelSpec, folder: Path) -> Finding:
    """Whether the chat template puts a question into the prompt, tried under the limits of every prompt."""
    if chat_template(folder) is None:
        return ok("chat template", "none: experts that use this model need a plain prompt")
    try:
        said, other = (
            own().prepare(Prepare(spec.name, str(folder), [ChatMessage("user", text)], spec.context_length)).ids
            for text in _SAMPLE_QUESTIONS
        )
    except CoeError as problem:
        return error("chat template", problem.message, problem.hint)
    if said == other:
        return error("chat template", "drops the question", "Use a plain prompt for this model's experts.")
    return ok("chat template", "works")

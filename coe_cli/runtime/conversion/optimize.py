"""Make a model that was built elsewhere faster: its head on the last position only, proved before it takes its place."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from coe_cli.core.model_spec import ModelSpec, spec_from_folder
from coe_cli.core.onnx_graph import graph_of
from coe_cli.errors import CoeError
from coe_cli.runtime.conversion.last_position import NotPrunable, write_pruned
from coe_cli.runtime.progress import OnProgress, Step
from coe_cli.runtime.providers import installed_providers
from coe_cli.runtime.store.integrity import MANIFEST, read_manifest, write_manifest
from coe_cli.runtime.store.model_store import check_room, open_model, put_in_place, staging_folder, writing
from coe_cli.runtime.worker.continuation import continue_prompts

ORIGINAL_GRAPH = "original_graph.pb"
_TOKENS = 4
PROMPTS = (
    "The capital of France is",
    "Water boils at a temperature of",
    "def fibonacci(n):\n    if n < 2:\n        return",
    "SELECT name FROM customers WHERE",
    "<!DOCTYPE html>\n<html>\n<head>\n<title>",
    "The derivative of x squared is",
    "If a train travels 60 miles in 1.5 hours, its average speed is",
    "The mitochondrion is",
    "Aspirin is contraindicated in patients who",
    "This agreement is made between the parties and shall",
    "In contract law, consideration means",
    "To protect a web service against SQL injection,",
    "A mutex is a",
    "1, 1, 2, 3, 5, 8, 13,",
    "Once upon a time, in a village by the sea,",
    "Il était une fois",
    "Der schnelle braune Fuchs springt über",
    "import numpy as np\n\n# the mean of each column\n",
    "Q: Who wrote Hamlet?\nA:",
    "The following text repeats a sentence, so that the prompt is longer than the others. " * 4 + "The sentence was:",
)


class NotOptimized(CoeError):
    """The graph stays as it is; the message says why."""

    code = "not_optimized"


def optimize(name: str, models_dir: Path, on_progress: OnProgress) -> bool:
    """Optimize a model on disk; the original graph stays beside it as ``original_graph.pb``.

    Returns False where there is nothing to do, since the head runs on the last position already.

    Raises:
        NotOptimized: its head is unknown, or the rewritten graph could not be proved to give the same tokens.
        ModelMissing, ModelDamaged, DiskFull: as for an install.
    """
    folder, staging = models_dir / name, staging_folder(name, models_dir)
    with writing(name, models_dir, on_progress):
        manifest = read_manifest(folder)
        try:
            if is_optimized(open_model(name, folder)):
                return False
            result = optimized_copy(name, folder, staging / "optimized", on_progress)
            write_manifest(result, manifest["origin"] if manifest else {})
            put_in_place(result, folder)
        finally:
            shutil.rmtree(staging / "optimized", ignore_errors=True)
            if staging.exists() and not any(staging.iterdir()):
                staging.rmdir()
    return True


def is_optimized(spec: ModelSpec) -> bool:
    """Whether the head runs on the last position only, as far as the graph says.

    Raises:
        ModelDamaged: the graph cannot be read.
    """
    return graph_of(spec).prunes_logits is True


def optimized_copy(name: str, folder: Path, target: Path, on_progress: OnProgress) -> Path:
    """Make ``target`` the same model as ``folder`` with an optimized graph, and prove it on 20 prompts.

    Files other than the graph are linked, or copied where the file system knows no links.

    Raises:
        NotOptimized: nothing to do, or not proved.
    """
    on_progress(Step("Optimizing the graph", 0, None))
    spec = spec_from_folder(name, folder)
    if spec.provider not in installed_providers():
        raise _unproved(name, f"it was built for {spec.provider}, which is not installed")
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    try:
        write_pruned(folder / spec.graph, target / spec.graph, spec.logits)
    except NotPrunable as error:
        raise NotOptimized(f"`{name}` stays as it is: {error}", "It works as it came.") from None
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if path.is_file() and inside.as_posix() not in (spec.graph, MANIFEST, ORIGINAL_GRAPH):
            (target / inside).parent.mkdir(parents=True, exist_ok=True)
            _link(name, path, target / inside)
    shutil.copyfile(folder / spec.graph, target / ORIGINAL_GRAPH)
    _prove(spec, spec_from_folder(name, target), on_progress)
    return target


def _prove(original: ModelSpec, rewritten: ModelSpec, on_progress: OnProgress) -> None:
    answers: list[list[list[str]]] = []
    for stage, spec in (("Asking the original", original), ("Asking the optimized model", rewritten)):
        on_progress(Step(stage, 0, None))
        try:
            answers.append(continue_prompts(spec, PROMPTS, max_tokens=_TOKENS)[1])
        except CoeError as error:
            raise _unproved(original.name, error.message) from error
    for prompt, wanted, got in zip(PROMPTS, *answers, strict=True):
        if wanted != got:
            raise NotOptimized(
                f"`{original.name}` stays as it is: after {prompt[:40]!r} the optimized graph says {got} instead of {wanted}",
                "Report it, with `coe doctor --bundle FILE.zip`.",
            )


def _unproved(name: str, reason: str) -> NotOptimized:
    return NotOptimized(
        f"`{name}` stays as it is, since an optimized graph cannot be proved here: {reason}",
        f"Run `coe models optimize {name}` on a machine that can load it.",
    )


def _link(name: str, source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        check_room(f"a copy of `{name}`", target.parent, source.stat().st_size)
        shutil.copy2(source, target)

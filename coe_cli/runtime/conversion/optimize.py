"""Rewrite the graph of a model that was built elsewhere, proved before it takes its place.

Its head runs on the last position only, and what its provider refuses or computes wrongly is put in another form.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from coe_cli.core.hardware.profile import Provider
from coe_cli.core.models.model_spec import ModelSpec
from coe_cli.core.providers import host, spec_of
from coe_cli.errors import CoeError
from coe_cli.providers.installed import installed_providers
from coe_cli.replacing import empty_folder, remove_folder
from coe_cli.runtime.conversion.agreement import PROMPTS, agreement
from coe_cli.runtime.conversion.fit_graph import NotFitting, NotPrunable, write_fitted, write_pruned
from coe_cli.runtime.model_folder.graph_files import check_model, graph_of
from coe_cli.runtime.model_folder.on_disk import spec_from_folder
from coe_cli.runtime.progress import OnProgress, Step, size_of
from coe_cli.runtime.store.integrity import MANIFEST, read_manifest, write_manifest
from coe_cli.runtime.store.model_removal import check_replaceable
from coe_cli.runtime.store.model_store import check_room, open_model, put_in_place, staging_folder, writing
from coe_cli.runtime.worker.first_logits import first_logits

ORIGINAL_GRAPH = "original_graph.pb"


class NotOptimized(CoeError):
    """The graph stays as it is; the message says why."""

    code = "not_optimized"


def optimize(name: str, models_dir: Path, on_progress: OnProgress) -> bool:
    """Optimize a model on disk; the original graph stays beside it as ``original_graph.pb``.

    Returns False where there is nothing to do: the head runs on the last position and the provider takes the graph.

    Raises:
        NotOptimized: its form is unknown, or the rewritten graph could not be proved to give the same tokens.
        ModelMissing, ModelDamaged, DiskFull: as for an install.
    """
    folder, staging = models_dir / name, staging_folder(name, models_dir)
    with writing(name, models_dir, on_progress):
        manifest = read_manifest(folder)
        try:
            if is_optimized(open_model(name, folder)):
                return False
            check_replaceable(name, models_dir)
            result = optimized_copy(name, folder, staging / "optimized", on_progress)
            write_manifest(result, manifest["origin"] if manifest else {})
            put_in_place(result, folder)
        finally:
            remove_folder(staging / "optimized", ignore_errors=True)
            if size_of(staging) == 0:
                remove_folder(staging, ignore_errors=True)
    return True


def is_optimized(spec: ModelSpec) -> bool:
    """Whether there is nothing to rewrite in a model's graph.

    Raises:
        ModelDamaged: the graph cannot be read.
    """
    return prunes_head(spec) and not needs_fitting(spec)


def prunes_head(spec: ModelSpec) -> bool:
    """Whether the head runs on the last position only, as far as the graph says.

    Raises:
        ModelDamaged: the graph cannot be read.
    """
    return graph_of(spec).prunes_logits is True


def optimized_copy(name: str, folder: Path, target: Path, on_progress: OnProgress) -> Path:
    """Make ``target`` the same model as ``folder`` with a rewritten graph, and prove it on 20 prompts.

    A graph that is made to fit its provider is proved on the host's own provider, since its own computes the original
    otherwise. Files other than the graph are linked, or copied where the file system knows no links.

    Raises:
        NotOptimized: nothing to do, or not proved.
    """
    on_progress(Step("Optimizing the graph", 0, None))
    spec = spec_from_folder(name, folder)
    fitted = needs_fitting(spec)
    provider = host().name if fitted else spec.provider
    if provider not in installed_providers():
        raise _unproved(name, f"it was built for {spec.provider}, which is not installed")
    empty_folder(target)
    _rewrite(spec, target / spec.graph)
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if path.is_file() and inside.as_posix() not in (spec.graph, MANIFEST, ORIGINAL_GRAPH):
            (target / inside).parent.mkdir(parents=True, exist_ok=True)
            _link(name, path, target / inside)
    shutil.copyfile(folder / spec.graph, target / ORIGINAL_GRAPH)
    _prove(spec, spec_from_folder(name, target), provider, on_progress)
    return target


def needs_fitting(spec: ModelSpec) -> bool:
    """Whether the provider that a model was built for refuses or miscomputes parts of its graph that can be rewritten.

    Raises:
        ModelDamaged: the graph cannot be read.
    """
    return any(problem.rewritable for problem in check_model(spec))


def _rewrite(spec: ModelSpec, target: Path) -> None:
    """Write the graph of ``spec`` to ``target`` with all rewrites that it needs and whose form is known."""
    assert spec.folder is not None
    source, refusals = spec.folder / spec.graph, []
    changed = False
    try:
        changed = bool(write_fitted(source, target, spec_of(spec.provider).graph))
    except NotFitting as error:
        refusals.append(str(error))
    try:
        write_pruned(target if changed else source, target, spec.logits)
        changed = True
    except NotPrunable as error:
        refusals.append(str(error))
    if not changed:
        raise NotOptimized(f"`{spec.name}` stays as it is: {'; '.join(refusals)}", "It works as it came.")


def _prove(original: ModelSpec, rewritten: ModelSpec, provider: Provider, on_progress: OnProgress) -> None:
    logits = []
    for stage, spec in (("Asking the original", original), ("Asking the optimized model", rewritten)):
        on_progress(Step(stage, 0, None))
        try:
            logits.append(first_logits(spec, provider, PROMPTS))
        except CoeError as error:
            raise _unproved(original.name, error.message) from error
    found = agreement(*logits)
    if not found.agrees:
        raise NotOptimized(
            f"`{original.name}` stays as it is: the optimized graph computes something else, {found}",
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

"""`coe doctor`: each model on disk, the provider that it would use and why, duplicates, and workers that hold models."""

from __future__ import annotations

import sys
from collections.abc import Collection
from pathlib import Path

from msgspec.structs import replace

from coe_cli.core.findings import Finding, Level, error, ok, warning, worst
from coe_cli.core.hardware.profile import Provider
from coe_cli.core.models.catalog import Catalog
from coe_cli.core.models.graph_check import problem_findings
from coe_cli.core.names import size_words
from coe_cli.core.providers import spec_of
from coe_cli.errors import CoeError
from coe_cli.providers.installed import choose_provider, install_command, installed_runtimes
from coe_cli.runtime.conversion.optimize import prunes_head
from coe_cli.runtime.doctor.software import SYSTEMS
from coe_cli.runtime.model_folder.graph_files import check_model
from coe_cli.runtime.model_folder.on_disk import models_on_disk
from coe_cli.runtime.server.loaded_models import models_in_use
from coe_cli.runtime.store.inventory import all_duplicates
from coe_cli.runtime.store.model_store import open_model, unfinished
from coe_cli.runtime.store.older_recipe import older_recipe


def check_models(catalog: Catalog, models_dir: Path, installed: Collection[Provider]) -> list[Finding]:
    """Findings for every model on disk; no weights are read."""
    found = models_on_disk(models_dir)
    findings = [
        warning(
            "models",
            f"an install of {name} broke off and holds {size_words(size_mb)}",
            f"coe models pull {name} goes on with it, coe models rm {name} gives it up",
        )
        for name, size_mb in unfinished(models_dir).items()
    ]
    if not found:
        missing = warning("models", f"no model is in {models_dir}", f"coe models pull {catalog.default_model}")
        return [*findings, missing]
    for name, folder in found.items():
        try:
            spec = open_model(name, folder)
            provider, why = choose_provider(name, spec.provider, installed)
            pruned, problems = prunes_head(spec), problem_findings(spec, check_model(spec))
        except CoeError as problem:
            findings.append(error("models", problem.message, problem.hint))
            continue
        findings += [replace(each, check="models", message=f"{name}: {each.message}") for each in problems]
        if older := older_recipe(name, folder):
            findings.append(replace(older, check="models"))
        if provider == spec.provider and worst(problems) is Level.ERROR:
            continue
        line = f"{name} runs on {provider}: {why}"
        if provider != spec.provider:
            fix = _how_to_have(spec.provider)
            findings.append(warning("models", line, fix))
        else:
            findings.append(ok("models", line))
        if not pruned:
            message = f"{name} computes the head for every position of a prompt: more memory, slower prompts"
            findings.append(warning("models", message, f"coe models optimize {name}"))
    return [*findings, *_duplicates(models_dir, catalog)]


def _how_to_have(provider: Provider) -> str:
    spec = spec_of(provider)
    if spec.exists_on(sys.platform):
        return install_command(spec, [*installed_runtimes()])
    return f"Run it on {SYSTEMS.get(spec.platforms[0], spec.platforms[0])}, with {spec.label}."


def check_held_models(models_dir: Path) -> list[Finding]:
    """The running college, and workers that hold models right now."""
    from coe_cli.runtime.server.college_client import find

    findings = []
    try:
        client = find(any_state=True)
        status = client.snapshot() if client is not None else None
    except CoeError as problem:
        findings.append(warning("college", problem.message, "coe stop"))
        status = None
    if status is not None:
        findings.append(ok("college", f"runs as process {status.pid} at {status.url}, profile {status.profile}"))
        if status.pressure is not None and status.pressure.level in ("high", "critical"):
            findings.append(
                warning(
                    "college", f"memory pressure is {status.pressure.level}", "coe stop, then a smaller profile (-p)"
                )
            )
    held = models_in_use(models_dir)
    findings += [
        ok("college", f"{name} is loaded by process {', '.join(map(str, sorted(pids)))}") for name, pids in held.items()
    ]
    return findings or [ok("college", "none is running and no worker has a model loaded")]


def _duplicates(models_dir: Path, catalog: Catalog) -> list[Finding]:
    """Of models with the same weights the one to go is one that no expert and no catalog names."""
    groups = {tuple(sorted([name, *others])) for name, others in all_duplicates(models_dir).items()}
    findings = []
    for group in sorted(groups):
        removable = next((name for name in reversed(group) if name not in catalog.models), group[-1])
        message = f"{' and '.join(group)} hold the same weights"
        findings.append(warning("duplicates", message, f"coe models rm {removable}"))
    return findings

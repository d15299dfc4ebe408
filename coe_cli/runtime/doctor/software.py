"""`coe doctor`: operating system, Python, packages, and what ONNX Runtime GenAI says of itself."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata

from coe_cli.core.findings import Finding, error, ok
from coe_cli.core.hardware.machine import Adapter
from coe_cli.core.providers import all_specs, expected_on, names, spec_of
from coe_cli.providers import runtime_of
from coe_cli.providers.installed import (
    inference_packages,
    install_command,
    installed_providers,
    installed_versions,
    plugin_packages,
    reinstall_command,
    runtime_packages,
)
from coe_cli.runtime.worker.oga_report import OgaReport

_OTHERS = ("onnx-ir", "tokenizers", "transformers", "torch", "sentence-transformers", "huggingface_hub")
SYSTEMS = {"win32": "Windows", "linux": "Linux", "darwin": "macOS"}
_OLDEST_PYTHON = (3, 11)


def check_system() -> list[Finding]:
    """Operating system, machine and Python."""
    system = f"{platform.system()} {platform.release()} {platform.version()}, {platform.machine()}"
    findings = [ok("system", system)]
    bits = 64 if sys.maxsize > 2**32 else 32
    python = f"Python {platform.python_version()}, {bits} bits, {sys.executable}"
    if sys.version_info < _OLDEST_PYTHON or bits != 64:
        findings.append(error("python", python, "Install a 64-bit Python 3.11 or newer and coe into it."))
    else:
        findings.append(ok("python", python))
    return findings


def installed_packages() -> dict[str, str]:
    """Versions of the packages that matter here."""
    return installed_versions(("coe-cli", *runtime_packages(), *inference_packages(), *plugin_packages(), *_OTHERS))


def check_packages(packages: Mapping[str, str], *, platform: str) -> list[Finding]:
    """One ONNX Runtime and one ONNX Runtime GenAI, of versions that ask for each other, and for this system."""
    findings = [ok("packages", ", ".join(f"{name} {version}" for name, version in packages.items()))]
    runtimes = [name for name in runtime_packages() if name in packages]
    inference = [name for name in inference_packages() if name in packages]
    wanted = expected_on(platform)
    install = install_command(wanted, packages)
    for kind, found in (("ONNX Runtime GenAI", runtimes), ("ONNX Runtime", inference)):
        if not found:
            findings.append(error("packages", f"{kind} is not installed", install))
        elif len(found) > 1:
            # They unpack into one folder, and the one installed last wins file by file.
            findings.append(error("packages", f"{' and '.join(found)} overwrite each other's files", install))
    here = [spec for spec in all_specs() if spec.exists_on(platform)]
    if platform in wanted.expected_on and runtimes and not set(runtimes) & set(wanted.oga_packages):
        others = [spec.label for spec in here if spec.on_card and spec.installed_with(packages)]
        message = f"{wanted.label} is not available: the installed build has none"
        findings.append(
            ok("packages", f"{message}; {others[0]} drives the card") if others else error("packages", message, install)
        )
    for spec in all_specs():
        if spec not in here and set(runtimes) & set(spec.oga_packages):
            systems = " and ".join(SYSTEMS.get(name, name) for name in spec.platforms)
            findings.append(error("packages", f"{spec.label} exists on {systems} only", install))
    return [*findings, *_unmet(runtimes)]


def _unmet(names: list[str]) -> list[Finding]:
    """What the packages ask of each other and do not get, by their own metadata."""
    from packaging.requirements import InvalidRequirement, Requirement

    findings = []
    for name in ("coe-cli", *names):
        try:
            asked = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        for text in asked:
            try:
                requirement = Requirement(text)
                if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
                    continue
                found = metadata.version(requirement.name)
            except (InvalidRequirement, metadata.PackageNotFoundError):
                found = None
            if found is None:
                findings.append(error("packages", f"{name} needs {text}, which is missing", f'pip install "{text}"'))
            elif not requirement.specifier.contains(found, prereleases=True):
                message = f"{name} needs {text}, {found} is installed"
                findings.append(error("packages", message, f'pip install "{requirement.name}{requirement.specifier}"'))
    return findings


def check_oga(report: OgaReport, *, platform: str) -> list[Finding]:
    """What ONNX Runtime GenAI offers, and what each provider's library says."""
    if report.problem is not None:
        fix = reinstall_command(expected_on(platform), installed_packages())
        if platform == "win32":
            fix += "; if it names a DLL, install the Microsoft Visual C++ Redistributable (x64)"
        return [error("runtime", f"ONNX Runtime GenAI cannot be imported: {report.problem}", fix)]
    findings = [ok("runtime", f"ONNX Runtime GenAI {report.version} offers {', '.join(report.offers)}")]
    another = any(spec_of(name).on_card for name in report.offers)
    for name in names():
        if (offered := name in report.offers) or not another:  # one that drives the card is enough
            details = report.details.get(name, {})
            findings += runtime_of(name).check(offered=offered, details=details, platform=platform)
    return findings


def check_cards(adapters: Sequence[Adapter], *, platform: str) -> list[Finding]:
    """What each provider that is installed finds of the machine's adapters when it tries them."""
    return [
        finding
        for name in installed_providers()
        for finding in runtime_of(name).check_cards(adapters, platform=platform)
    ]

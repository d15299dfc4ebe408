"""`coe doctor`: operating system, Python, packages, and what ONNX Runtime GenAI says of itself."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from importlib import metadata

from coe_cli.core.findings import Finding, error, ok, warning
from coe_cli.runtime.providers import RUNTIMES
from coe_cli.runtime.worker.oga_report import OgaReport

_PACKAGES = (
    *("coe-cli", *RUNTIMES, "onnxruntime", "onnxruntime-directml", "onnxruntime-gpu"),
    *("onnx-ir", "tokenizers", "transformers", "torch", "sentence-transformers", "huggingface_hub"),
)
_INFERENCE = ("onnxruntime", "onnxruntime-directml", "onnxruntime-gpu")
WINDOWS_PAIR = "onnxruntime-genai-directml==0.13.1 onnxruntime-directml==1.24.4"
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
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def check_packages(packages: Mapping[str, str], *, windows: bool) -> list[Finding]:
    """One ONNX Runtime and one ONNX Runtime GenAI, of versions that ask for each other, and for this system."""
    findings = [ok("packages", ", ".join(f"{name} {version}" for name, version in packages.items()))]
    runtimes = [name for name in RUNTIMES if name in packages]
    inference = [name for name in _INFERENCE if name in packages]
    for kind, names in (("ONNX Runtime GenAI", runtimes), ("ONNX Runtime", inference)):
        if not names:
            findings.append(error("packages", f"{kind} is not installed", "pip install --force-reinstall coe-cli"))
        elif len(names) > 1:
            # They unpack into one folder, and the one installed last wins file by file.
            findings.append(
                error(
                    "packages",
                    f"{' and '.join(names)} overwrite each other's files",
                    f"pip uninstall -y {' '.join(runtimes + inference)} && pip install coe-cli",
                )
            )
    if windows and runtimes and "onnxruntime-genai-directml" not in runtimes:
        findings.append(
            error("packages", "DirectML is not available: the installed build has none", f"pip install {WINDOWS_PAIR}")
        )
    if not windows and "onnxruntime-genai-directml" in runtimes:
        findings.append(error("packages", "DirectML exists on Windows only", "pip install onnxruntime-genai"))
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


def check_oga(report: OgaReport, *, windows: bool) -> list[Finding]:
    """What ONNX Runtime GenAI offers, and on Windows which DirectML.dll it has loaded."""
    if report.problem is not None:
        fix = "pip install --force-reinstall coe-cli"
        if windows:
            fix += "; if it names a DLL, install the Microsoft Visual C++ Redistributable (x64)"
        return [error("runtime", f"ONNX Runtime GenAI cannot be imported: {report.problem}", fix)]
    offered = [name for name, there in (("dml", report.dml), ("cuda", report.cuda), ("cpu", True)) if there]
    findings = [ok("runtime", f"ONNX Runtime GenAI {report.version} offers {', '.join(offered)}")]
    if not windows:
        return findings
    if not report.dml:
        findings.append(
            error(
                "directml", "DirectML is not available in this build", f"pip install --force-reinstall {WINDOWS_PAIR}"
            )
        )
    elif report.directml_path is None:
        findings.append(
            warning("directml", "no DirectML.dll is loaded yet", f"pip install --force-reinstall {WINDOWS_PAIR}")
        )
    else:
        where = f"{report.directml_path}, version {report.directml_version or 'unknown'}"
        from_windows = "\\windows\\system32" in report.directml_path.lower()
        findings.append(
            warning(
                "directml",
                f"Windows' own DirectML is loaded: {where}",
                f"pip install --force-reinstall {WINDOWS_PAIR}",
            )
            if from_windows
            else ok("directml", where)
        )
    return findings

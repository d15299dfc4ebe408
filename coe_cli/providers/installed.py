"""Which providers are installed, and which of them a model gets."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from coe_cli import package
from coe_cli.core.hardware.profile import Provider
from coe_cli.core.providers import ProviderSpec, all_specs, host, on_host, runs_on, spec_of
from coe_cli.errors import DeviceLost


def runtime_packages() -> list[str]:
    """Distributions of ONNX Runtime GenAI, those of the preferred providers first."""
    return list(dict.fromkeys(package for spec in all_specs() for package in spec.oga_packages))


def inference_packages() -> list[str]:
    """Distributions of ONNX Runtime, the host's own first."""
    return list(dict.fromkeys(package for spec in reversed(all_specs()) for package in spec.ort_packages))


def plugin_packages() -> list[str]:
    """Distributions of providers that are loaded into an ONNX Runtime."""
    return [spec.plugin_package for spec in all_specs() if spec.plugin_package]


def installed_versions(names: Iterable[str]) -> dict[str, str]:
    """Distribution → version of those of ``names`` that are installed."""
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, str] = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def installed_runtimes() -> dict[str, str]:
    """Every ONNX Runtime GenAI that is installed; more than one is a mistake."""
    return installed_versions(runtime_packages())


def install_command(spec: ProviderSpec, packages: Collection[str]) -> str:
    """The command that installs ``spec``'s runtime; with others among the installed ``packages`` they go first.

    All builds of ONNX Runtime unpack into one folder: the one installed last would win file by file.
    """
    runtimes = [name for name in runtime_packages() if name in packages]
    found = [*runtimes, *(name for name in inference_packages() if name in packages)]
    extra = spec.other_extras.get(runtimes[0], spec.extra) if len(runtimes) == 1 else spec.extra
    command = package.install_command(extra)
    alone = len(found) - len(runtimes) < 2 and len(runtimes) < 2
    own = {*spec.oga_packages, *spec.ort_packages}
    return command if alone and set(found) <= own else f"pip uninstall -y {' '.join(found)} && {command}"


def reinstall_command(spec: ProviderSpec, packages: Collection[str]) -> str:
    """The same where files of it are missing or another's."""
    return install_command(spec, packages).replace("pip install ", "pip install --force-reinstall ", 1)


def runtime_version(provider: Provider) -> str | None:
    """Version of the installed ONNX Runtime GenAI that has ``provider``, or None."""
    installed = installed_runtimes()
    for name, version in installed.items():
        if on_host(provider) or name in spec_of(provider).oga_packages:
            return version
    return None


def installed_providers() -> list[Provider]:
    """Providers that the installed packages have on this system, the preferred first; no driver is asked."""
    installed = installed_versions([*runtime_packages(), *plugin_packages()])
    return [spec.name for spec in all_specs() if on_host(spec.name) or spec.installed_with(installed)]


def choose_provider(model: str, built_for: Provider, installed: Collection[str]) -> tuple[Provider, str]:
    """The first of ``runs_on`` that is ``installed``, and why, in words; the words begin with "slower:" on the host.

    Raises:
        DeviceLost: none of them is installed.
    """
    provider = next((name for name in runs_on(built_for) if name in installed), None)
    if provider is None:
        raise DeviceLost(f"provider {built_for} is not installed for `{model}`", "See `coe doctor`.")
    if provider == built_for:
        return provider, f"it was built for {built_for}"
    elsewhere = f"{model} was built for {built_for}, which is not installed here, and"
    if on_host(provider):
        return provider, f"slower: {elsewhere} runs on the {host().label}"
    return provider, f"{elsewhere} {provider} runs the same graph"

"""Which providers are installed, and which of them a model gets."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from coe_cli import package
from coe_cli.core.hardware.profile import HardwareProfile, Provider
from coe_cli.core.providers import ProviderSpec, all_specs, host, on_host, spec_of
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
    own = {*spec.oga_packages, *spec.ort_packages}
    found = [name for name in (*runtime_packages(), *inference_packages()) if name in packages]
    command = package.install_command(spec.extra)
    return command if set(found) <= own else f"pip uninstall -y {' '.join(found)} && {command}"


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


def order_to_try(profile: HardwareProfile) -> list[Provider]:
    """Providers for a profile's models, the profile's own first; the host's own is what is left when a card cannot be had."""
    return list(dict.fromkeys([profile.provider, host().name]))


def choose_provider(
    model: str, built_for: Provider, profile: HardwareProfile, installed: Collection[str]
) -> tuple[Provider, str]:
    """The provider that ``model`` gets and why, in words; the words begin with "slower:" when it is not its own.

    A model runs where it was built for, else on a provider of the same cards that takes its graph (``runs_graphs_of``). Builds
    for a card also run on the CPU, slowly; builds for the CPU stay there, since their weights are laid out for it
    (``GraphRules.packs_weights``).

    Raises:
        DeviceLost: none of the profile's providers is installed.
    """
    last = host()
    if spec_of(built_for).graph.packs_weights:
        return built_for, f"it was built for the {spec_of(built_for).label}"
    alike = [spec.name for spec in all_specs() if built_for in spec.runs_graphs_of]
    for provider in dict.fromkeys([built_for, *alike, *order_to_try(profile)]):
        if provider == built_for and provider in installed:
            return provider, f"it was built for {provider}"
        if provider in alike and provider in installed:
            return (
                provider,
                f"{model} was built for {built_for}, which is not installed here, and {provider} runs the same graph",
            )
        if provider == last.name and provider in installed:
            why = f"{model} was built for {built_for}, which is not installed here, and runs on the {last.label}"
            return provider, f"slower: {why}"
    raise DeviceLost(f"provider {built_for} is not installed for `{model}`", "See `coe doctor`.")

"""ONNX Runtime GenAI raises RuntimeError with free text for every failure: here the text becomes one of our errors.

What a provider's texts mean is in its own table (``core.providers``); source files, addresses and threads are left out.
"""

from __future__ import annotations

import re
import sys

from coe_cli.core.providers import spec_of
from coe_cli.errors import CoeError, DeviceLost, ModelDamaged, OutOfMemory, UnusableGrammar
from coe_cli.package import install_command

_GRAMMAR = re.compile(r"error creating grammar|invalid grammar|committing tokens|\blexer|parser error", re.IGNORECASE)
_FORCED_BYTES = re.compile(r"forced bytes", re.IGNORECASE)
_NATIVE = re.compile(
    r"(?:[A-Za-z]:)?[\\/][^\s:()]*\.(?:cpp|cc|cxx|cu|cuh|h|hpp)\b(?:[:(]\d+\)?)?"  # a source file and its line
    r"(?:\s[^()]*onnxruntime::[\w:~<>]+\([^)]*\)(?:\s*const)?(?:\s*\[with [^\]]*\])?)?"  # and the function in it
    r"|\\?[\w.-]+\.(?:dll|pyd|exe|so[\d.]*)!\s*(?:0x)?[0-9A-Fa-f]{6,}:?"
    r"|\(caller: (?:0x)?[0-9A-Fa-f]+\)|\b\w+\(\d+\) tid\([0-9A-Fa-f]+\)"
    r"|\b0x[0-9A-Fa-f]{6,}\b|;\s*(?:file|line|expr|hostname)=[^;]*"
)
"""Where in native code something happened: it says nothing to a user and a path of the machine that built it."""
_NEWER_FORMAT = re.compile(r'Unknown value "(?P<key>[^"]*)"|Unsupported model_type')


def from_oga(error: BaseException, *, model: str, provider: str, loading: bool) -> CoeError:
    """The CoeError that ``error`` means for ``model``; the library's first line is kept in the message.

    An error that already is a CoeError comes back as it is.
    """
    if isinstance(error, CoeError):
        return error
    text = str(error)
    detail = _first_line(text)
    if _FORCED_BYTES.search(text):
        return UnusableGrammar(
            f"the answer's JSON schema or grammar forces text outside ASCII, which the tokens of `{model}` cannot be made to give",
            "Use ASCII in enum and const, and translate it afterwards.",
        )
    if _GRAMMAR.search(text):
        return UnusableGrammar(
            f"the answer's JSON schema or grammar cannot be used: {detail}", "Correct or simplify it."
        )
    spec = spec_of(provider)
    meaning = spec.meaning(text)
    kind = "out_of_memory" if isinstance(error, MemoryError) else meaning.kind if meaning is not None else None
    detail = (meaning.reason if meaning is not None else None) or detail
    hint = meaning.hint if meaning is not None else None
    if kind == "out_of_memory":
        return OutOfMemory(
            f"out of memory {'loading' if loading else 'running'} `{model}` on {provider}: {detail}",
            hint or "Choose a smaller profile (-p minimal) or close other programs that use the device.",
        )
    if kind == "device_lost":
        return DeviceLost(
            f"the device was lost while running `{model}` on {provider}: {detail}",
            hint or "Run it again; if it recurs, use a shorter prompt or update the graphics driver.",
        )
    if kind == "unavailable":
        here = spec.exists_on(sys.platform)
        install = (
            f"Install {spec.label} ({install_command(spec.extra)}), or"
            if here
            else f"{spec.label} is not for this system:"
        )
        return DeviceLost(
            f"provider {provider} is not available for `{model}`: {detail}",
            hint or f"{install} choose a model for the CPU (-m smollm2-135m).",
        )
    if loading and _NEWER_FORMAT.search(text):
        return ModelDamaged(
            f"model `{model}` was built for another version of ONNX Runtime GenAI: {detail}",
            "Fetch a build for this version (`coe doctor` shows it), or take that entry out of its genai_config.json.",
        )
    if loading:
        return ModelDamaged(
            f"model `{model}` cannot be loaded: {detail}", f"Fetch it again: coe models pull {model} --force"
        )
    return CoeError(f"`{model}` failed on {provider}: {detail}", "Run it again; COE_DEBUG=1 shows the details.")


def _first_line(text: str, limit: int = 300) -> str:
    lines = (_NATIVE.sub(" ", part) for part in text.splitlines())
    line = next((" ".join(part.split()) for part in lines if part.strip()), "no details given")
    return line if len(line) <= limit else line[:limit] + "…"

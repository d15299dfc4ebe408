"""ONNX Runtime GenAI raises RuntimeError with free text for every failure: here the text becomes one of our errors."""

from __future__ import annotations

import re

from coe_cli.errors import CoeError, DeviceLost, ModelDamaged, OutOfMemory, UsageError

_OUT_OF_MEMORY = re.compile(
    r"out of memory|bad_alloc|failed to allocate|not enough memory|E_OUTOFMEMORY|8007000E|cudaErrorMemoryAllocation"
    r"|CUBLAS_STATUS_ALLOC_FAILED|BFCArena",
    re.IGNORECASE,
)
_DEVICE_LOST = re.compile(
    r"887A0005|887A0006|887A0007|887A0020|device (was )?removed|device (was )?hung|DXGI_ERROR_DEVICE"
    r"|cudaErrorLaunchFailure|cudaErrorIllegalAddress|CUDA failure (700|719)",
    re.IGNORECASE,
)
_PROVIDER_MISSING = re.compile(
    r"provider .*(not (enabled|available|supported)|unknown)|unknown provider|not built with|cannot open shared object"
    r"|failed to load library|no (suitable|compatible) (device|adapter)",
    re.IGNORECASE,
)
_GRAMMAR = re.compile(r"error creating grammar|invalid grammar|committing tokens|\blexer|parser error", re.IGNORECASE)
_FORCED_BYTES = re.compile(r"forced bytes", re.IGNORECASE)
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
        return UsageError(
            f"the answer's JSON schema forces text outside ASCII, which the tokens of `{model}` cannot be made to give",
            "Use ASCII in enum and const, and translate it afterwards.",
        )
    if _GRAMMAR.search(text):
        return UsageError(f"the answer's JSON schema cannot be used: {detail}", "Correct or simplify the schema.")
    if isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(text):
        return OutOfMemory(
            f"out of memory {'loading' if loading else 'running'} `{model}` on {provider}: {detail}",
            "Choose a smaller profile (-p minimal) or close other programs that use the device.",
        )
    if _DEVICE_LOST.search(text):
        return DeviceLost(
            f"the device was lost while running `{model}` on {provider}: {detail}",
            "Run it again; if it recurs, use a shorter prompt or update the graphics driver.",
        )
    if _PROVIDER_MISSING.search(text):
        return DeviceLost(
            f"provider {provider} is not available for `{model}`: {detail}",
            "Install the ONNX Runtime GenAI package for that provider, or choose a model for the CPU (-m smollm2-135m).",
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
    line = next((part.strip() for part in text.splitlines() if part.strip()), "no details given")
    return line if len(line) <= limit else line[:limit] + "…"

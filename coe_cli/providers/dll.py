"""Which DLLs this process has loaded, and their versions (Windows)."""

from __future__ import annotations


def loaded_module(name: str) -> str | None:
    """The file that this process has loaded as ``name`` (Windows)."""
    import ctypes

    kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)  # type: ignore[attr-defined,unused-ignore]
    kernel32.GetModuleHandleW.restype = ctypes.c_void_p
    kernel32.GetModuleHandleW.argtypes = [ctypes.c_wchar_p]
    kernel32.GetModuleFileNameW.argtypes = [ctypes.c_void_p, ctypes.c_wchar_p, ctypes.c_uint32]
    handle = kernel32.GetModuleHandleW(name)
    if not handle:
        return None
    buffer = ctypes.create_unicode_buffer(32768)
    return buffer.value if kernel32.GetModuleFileNameW(handle, buffer, len(buffer)) else None


def file_version(path: str) -> str | None:
    """The four numbers of a DLL's fixed version information (Windows: VS_FIXEDFILEINFO)."""
    import ctypes

    version = ctypes.WinDLL("version", use_last_error=True)  # type: ignore[attr-defined,unused-ignore]
    size = version.GetFileVersionInfoSizeW(ctypes.c_wchar_p(path), None)
    if not size:
        return None
    data = ctypes.create_string_buffer(size)
    if not version.GetFileVersionInfoW(ctypes.c_wchar_p(path), 0, size, data):
        return None
    pointer, length = ctypes.c_void_p(), ctypes.c_uint()
    if not version.VerQueryValueW(data, ctypes.c_wchar_p("\\"), ctypes.byref(pointer), ctypes.byref(length)):
        return None
    assert pointer.value is not None
    high, low = (ctypes.c_uint32 * 4).from_address(pointer.value)[2:4]
    return f"{high >> 16}.{high & 0xFFFF}.{low >> 16}.{low & 0xFFFF}"

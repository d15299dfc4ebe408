"""Linux: the adapters that Vulkan has, by name and PCI ids. It loads every driver: for processes that may end by it."""

from __future__ import annotations

import ctypes
from typing import Final

from msgspec import Struct

_LIBRARY: Final = "libvulkan.so.1"
_INSTANCE_CREATE_INFO: Final = 1
_PROPERTIES_BYTES: Final = 4096
"""More than a VkPhysicalDeviceProperties has (vulkan_core.h)."""


class VulkanAdapter(Struct, frozen=True):
    """``vendor`` and ``device`` as on the PCI bus."""

    name: str
    vendor: int
    device: int

    @property
    def ids(self) -> str:
        return f"{self.vendor:04x}:{self.device:04x}"


class _InstanceCreateInfo(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int32),
        ("next", ctypes.c_void_p),
        ("flags", ctypes.c_uint32),
        ("application", ctypes.c_void_p),
        ("layer_count", ctypes.c_uint32),
        ("layers", ctypes.c_void_p),
        ("extension_count", ctypes.c_uint32),
        ("extensions", ctypes.c_void_p),
    ]


def adapters() -> list[VulkanAdapter]:
    """Every adapter in the loader's order; none where there is no Vulkan."""
    try:
        vulkan = ctypes.CDLL(_LIBRARY)
    except OSError:
        return []
    instance, count = ctypes.c_void_p(), ctypes.c_uint32()
    information = _InstanceCreateInfo(type=_INSTANCE_CREATE_INFO)
    if vulkan.vkCreateInstance(ctypes.byref(information), None, ctypes.byref(instance)):
        return []
    try:
        vulkan.vkEnumeratePhysicalDevices(instance, ctypes.byref(count), None)
        handles = (ctypes.c_void_p * count.value)()
        vulkan.vkEnumeratePhysicalDevices(instance, ctypes.byref(count), handles)
        return [_adapter(vulkan, handle) for handle in handles[: count.value] if handle]
    finally:
        vulkan.vkDestroyInstance(instance, None)


def _adapter(vulkan: ctypes.CDLL, handle: int) -> VulkanAdapter:
    properties = ctypes.create_string_buffer(_PROPERTIES_BYTES)
    vulkan.vkGetPhysicalDeviceProperties(ctypes.c_void_p(handle), properties)
    _, _, vendor, device, _ = (ctypes.c_uint32 * 5).from_buffer(properties)
    name = properties.raw[20:276].split(b"\0")[0].decode("utf-8", "replace")
    return VulkanAdapter(name, vendor, device)

"""Give Wine 10's ucrtbase.dll the functions of complex numbers that numpy calls on some processors and Wine leaves out.

Usage: complete_ucrtbase.py UCRTBASE.DLL. Each is written over its stub, which takes 24 bytes.
"""

import struct
import sys
from pathlib import Path

STUB = bytes.fromhex("4883ec28488d0d")  # sub rsp, 40; lea rcx, [name of the dll]
CODE = {
    "crealf": bytes.fromhex("660f6ec1c3"),  # movd xmm0, ecx; ret
    "cimagf": bytes.fromhex("4889c848c1e820660f6ec0c3"),  # mov rax, rcx; shr rax, 32; movd xmm0, eax; ret
    "cimag": bytes.fromhex("f20f104108c3"),  # movsd xmm0, [rcx + 8]; ret
}


def exports(image: bytes) -> dict[str, int]:
    """Offset in the file of each function that a PE32+ DLL exports by name."""
    (header,) = struct.unpack_from("<I", image, 0x3C)
    sections, optional_bytes = struct.unpack_from("<H12xH", image, header + 6)
    table = [struct.unpack_from("<8xIIII", image, header + 24 + optional_bytes + 40 * i) for i in range(sections)]

    def at(address: int) -> int:
        return next(address - start + raw for size, start, _, raw in table if start <= address < start + size)

    directory = at(*struct.unpack_from("<I", image, header + 24 + 112))
    count, functions, names, ordinals = struct.unpack_from("<IIII", image, directory + 24)
    found = {}
    for index in range(count):
        name = at(*struct.unpack_from("<I", image, at(names) + 4 * index))
        (ordinal,) = struct.unpack_from("<H", image, at(ordinals) + 2 * index)
        (function,) = struct.unpack_from("<I", image, at(functions) + 4 * ordinal)
        found[image[name : image.index(b"\0", name)].decode()] = at(function)
    return found


path = Path(sys.argv[1])
image = bytearray(path.read_bytes())
offsets = exports(bytes(image))
for name, code in CODE.items():
    begin = offsets[name]
    if image[begin : begin + len(STUB)] == STUB:
        image[begin : begin + len(code)] = code
path.write_bytes(image)

"""Public graphics cards by name, memory and its bandwidth, and how people write an amount of memory.

Source of the figures: the makers' product pages (amd.com, nvidia.com, intel.com); memory in GB of 2**30 bytes, bandwidth in 10**9
bytes a second.
"""

from __future__ import annotations

import difflib
import re
from typing import Literal, NamedTuple

MB_PER_GB = 1024
Vendor = Literal["amd", "nvidia", "intel"]


class Card(NamedTuple):
    """A card that is sold, the memory on it, and how fast that is read."""

    name: str
    vendor: Vendor
    memory_gb: int
    bandwidth_gb_s: int


CARDS: tuple[Card, ...] = (
    Card("RX 6600", "amd", 8, 224),
    Card("RX 6600 XT", "amd", 8, 256),
    Card("RX 6700 XT", "amd", 12, 384),
    Card("RX 6800", "amd", 16, 512),
    Card("RX 6800 XT", "amd", 16, 512),
    Card("RX 6900 XT", "amd", 16, 512),
    Card("RX 6950 XT", "amd", 16, 576),
    Card("RX 7600", "amd", 8, 288),
    Card("RX 7600 XT", "amd", 16, 288),
    Card("RX 7700 XT", "amd", 12, 432),
    Card("RX 7800 XT", "amd", 16, 624),
    Card("RX 7900 GRE", "amd", 16, 576),
    Card("RX 7900 XT", "amd", 20, 800),
    Card("RX 7900 XTX", "amd", 24, 960),
    Card("RX 9060 XT 8G", "amd", 8, 320),
    Card("RX 9060 XT 16G", "amd", 16, 320),
    Card("RX 9070", "amd", 16, 640),
    Card("RX 9070 XT", "amd", 16, 640),
    Card("Radeon PRO W7900", "amd", 48, 864),
    Card("GTX 1080 Ti", "nvidia", 11, 484),
    Card("RTX 2060", "nvidia", 6, 336),
    Card("RTX 2070", "nvidia", 8, 448),
    Card("RTX 2080 Ti", "nvidia", 11, 616),
    Card("RTX 3050", "nvidia", 8, 224),
    Card("RTX 3060", "nvidia", 12, 360),
    Card("RTX 3060 Ti", "nvidia", 8, 448),
    Card("RTX 3070", "nvidia", 8, 448),
    Card("RTX 3080", "nvidia", 10, 760),
    Card("RTX 3090", "nvidia", 24, 936),
    Card("RTX 4060", "nvidia", 8, 272),
    Card("RTX 4060 Ti 16G", "nvidia", 16, 288),
    Card("RTX 4060 Ti 8G", "nvidia", 8, 288),
    Card("RTX 4070", "nvidia", 12, 504),
    Card("RTX 4070 Super", "nvidia", 12, 504),
    Card("RTX 4070 Ti Super", "nvidia", 16, 672),
    Card("RTX 4080", "nvidia", 16, 717),
    Card("RTX 4090", "nvidia", 24, 1008),
    Card("RTX 5060", "nvidia", 8, 448),
    Card("RTX 5060 Ti 16G", "nvidia", 16, 448),
    Card("RTX 5070", "nvidia", 12, 672),
    Card("RTX 5070 Ti", "nvidia", 16, 896),
    Card("RTX 5080", "nvidia", 16, 960),
    Card("RTX 5090", "nvidia", 32, 1792),
    Card("RTX A6000", "nvidia", 48, 768),
    Card("Arc A580", "intel", 8, 512),
    Card("Arc A750", "intel", 8, 512),
    Card("Arc A770", "intel", 16, 560),
    Card("Arc B570", "intel", 10, 380),
    Card("Arc B580", "intel", 12, 456),
)

_AMOUNT = re.compile(r"(?P<number>\d{1,7}(?:\.\d{1,3})?)\s*(?P<unit>[mgt])i?b?", re.IGNORECASE | re.ASCII)
_SERIES = re.compile(r"^(rtx|gtx|rx|arc)")
_UNIT_MB = {"m": 1, "g": MB_PER_GB, "t": MB_PER_GB**2}
HOW_TO_WRITE_MEMORY = "Write 16G, 16GB, 16384M or a number of MB."


def parse_memory_mb(text: str) -> int:
    """``16G``, ``7.5 GB``, ``16384M`` or a bare number of MB, in MB of 2**20 bytes.

    Raises:
        ValueError: it is no amount of memory, or none above 0.
    """
    text = text.strip()
    if text.isascii() and text.isdecimal() and len(text) <= 9:
        amount_mb = int(text)
    else:
        match = _AMOUNT.fullmatch(text)
        if match is None:
            raise ValueError(f"`{text}` is no amount of memory")
        amount_mb = round(float(match["number"]) * _UNIT_MB[match["unit"].lower()])
    if amount_mb < 1:
        raise ValueError(f"`{text}` is no amount of memory")
    return amount_mb


def find_card(text: str) -> Card | None:
    """The card that is meant: case, spaces, hyphens and the makers' prefixes do not matter."""
    wanted = _key(text)
    by_key = {_key(card.name): card for card in CARDS}
    if wanted in by_key:
        return by_key[wanted]
    by_number = {_SERIES.sub("", key): card for key, card in by_key.items()}
    if wanted in by_number:
        return by_number[wanted]
    both = by_key | by_number
    sizes = [card for key, card in both.items() if key.startswith(wanted) and key[len(wanted) :] in ("8g", "16g")]
    return min(sizes, key=lambda card: card.memory_gb) if sizes and wanted else None


def similar_cards(text: str) -> list[str]:
    """Names near to ``text``, the nearest first."""
    by_key = {_key(card.name): card.name for card in CARDS}
    return [by_key[key] for key in difflib.get_close_matches(_key(text), by_key, n=3, cutoff=0.6)]


def _key(text: str) -> str:
    words = re.sub(
        r"\b(amd|nvidia|intel|radeon(?! pro)|geforce|graphics|card)\b|[\s_-]+|\(r\)|\(tm\)", "", text.lower()
    )
    return re.sub(r"(\d+)gb\b", r"\1g", words)

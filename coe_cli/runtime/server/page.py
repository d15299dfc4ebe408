"""The page at `/`: one file, which may load nothing from elsewhere and run no script but its own."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from pathlib import Path


@functools.cache
def page() -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """The page and its headers."""
    body = (Path(__file__).parent / "page.html").read_bytes().replace(b"\r\n", b"\n")

    def allowed(tag: bytes) -> bytes:
        found = re.search(b"<%s>(.*?)</%s>" % (tag, tag), body, re.DOTALL)
        assert found is not None
        return b"'sha256-" + base64.b64encode(hashlib.sha256(found[1]).digest()) + b"'"

    policy = b"default-src 'none'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    policy += b"; script-src " + allowed(b"script") + b"; style-src " + allowed(b"style")
    return body, [
        (b"content-type", b"text/html; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        (b"content-security-policy", policy),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
    ]

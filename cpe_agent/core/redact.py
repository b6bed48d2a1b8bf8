"""What may leave this router in a support bundle?

Pure. In: text, and the secrets that this router is known to hold. Out: the text without them, and without whatever
looks like one. Two nets, each enough alone for what it is made for: what is known is taken out wherever it stands and
however it is broken into lines; what is not known, by its looks. Public keys, certificates and fingerprints stay.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable

REMOVED = "[removed]"
# Shorter pieces would be found in anything.
PIECE_MIN_CHARS = 16
# A shorter value of `password = ...` goes where it stands, and not wherever its letters do.
NAMED_MIN_CHARS = 12

_LOOKS = (
    # A PEM private key, whole or cut off.
    (re.compile(r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----.*?(?:-----END [A-Z0-9 ]*PRIVATE KEY-----|\Z)", re.DOTALL), ""),
    # A base64 line as PEM has them, of PKCS#8, PKCS#1 or SEC 1: an ASN.1 sequence that begins with its version.
    (re.compile(r"\bMI[A-Za-z0-9+/]{1,6}AgE[A-Za-z0-9+/=\n\\]{20,}"), ""),
    # A token.
    (re.compile(r"\bcpe1\.[A-Za-z0-9_=-]+"), ""),
    # Keys of SAs, as `ip xfrm state` and charon's log print them.
    (re.compile(r"((?:auth|auth-trunc|enc|aead|comp)\s+\S+\s+)0x[0-9a-fA-F]{8,}"), r"\1"),
    (
        re.compile(
            r"(\b(?:SK_[a-z]+|KEYMAT|SKEYSEED|shared [Ss]ecret)\b[^\n]*\n)"
            r"(?:\s*\d+:(?: [0-9A-F]{2}){1,16}[^\n]*\n?)+"
        ),
        r"\1",
    ),
    (re.compile(r"(?i)(\b(?:authorization|cookie):\s*)[^\n]+"), r"\1"),
    (re.compile(r"(\w+://[^\s/:@]+:)[^\s/@]+(@)"), r"\1\2"),
)  # fmt: skip

# NAME = value, NAME: value, "NAME": "value"; in URLs and on command lines too.
_NAMED = re.compile(
    r"(?i)(\b[\w-]*(?:psk|secret|passwd|password|passphrase|token|api[_-]?key|private[_-]?key|credential)"
    r"[\w-]*[\"']?\s*[:=]\s*)(?!(?:true|false|null|none|yes|no)\b)([\"']?)((?<=\")[^\"\n]*|(?<=')[^'\n]*|[^\s,;}\]\"']+)"
)


class Secrets:
    """What is known to be secret here. `of` are the contents of files that hold keys, and tokens."""

    def __init__(self, of: Iterable[str]) -> None:
        pieces: set[str] = set()
        for content in of:
            pieces |= _pieces(content)
        # Longest first: a part of a longer one must not spoil it.
        self._pieces = tuple(sorted(pieces, key=lambda piece: (-len(piece), piece)))

    def redact(self, text: str) -> str:
        """`text` with none of them in it, and nothing that looks like one."""
        for piece in self._pieces:
            text = text.replace(piece, REMOVED)
        for looks, kept in _LOOKS:
            text = looks.sub(_around(kept), text)
        # What is called a secret once is one wherever it stands.
        named = {match[3] for match in _NAMED.finditer(text)}
        text = _NAMED.sub(rf"\1\2{REMOVED}", text)
        for value in sorted(named, key=len, reverse=True):
            if len(value) >= NAMED_MIN_CHARS and value != REMOVED:
                text = text.replace(value, REMOVED)
        return text

    def within(self, content: bytes) -> bool:
        """Is there any of what is known?"""
        return any(piece.encode() in content for piece in self._pieces)


def _around(kept: str) -> str:
    """What was around a secret stays round the word that stands for it."""
    before, _, after = kept.partition("\\2")
    return f"{before}{REMOVED}\\2{after}" if "\\2" in kept else f"{kept}{REMOVED}"


def _pieces(content: str) -> set[str]:
    """Every form in which the secret may turn up: its words, its base64 lines, their bytes in hex."""
    words = {word for word in content.split() if len(word) >= PIECE_MIN_CHARS and not word.startswith("-----")}
    body = "".join(line for line in content.splitlines() if line and "-----" not in line)
    if len(body) >= PIECE_MIN_CHARS:
        words.add(body)
        try:
            raw = base64.b64decode(body, validate=True)
        except (binascii.Error, ValueError):
            return words
        words |= {raw.hex(), raw.hex().upper(), raw.hex(" "), raw.hex(":")}
    return words

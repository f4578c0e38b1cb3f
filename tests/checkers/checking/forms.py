"""The forms in which a secret can stand somewhere, and how a text is decoded to find mixtures of them."""

import base64
import json
import re
import shlex
import zlib
from collections.abc import Iterator
from urllib.parse import quote, quote_plus, unquote, unquote_to_bytes

FRAGMENT = 8
SHORTEST = 4
SPECIAL = re.compile(r"[^A-Za-z0-9]+")
PERCENT = re.compile(rb"%[0-9A-Fa-f]{2}")
ESCAPE = re.compile(rb'\\(u[0-9A-Fa-f]{4}|x[0-9A-Fa-f]{2}|[0-7]{3}|.)', re.DOTALL)
NAMED = {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"b": b"\b", b"f": b"\f"}
TOKEN = re.compile(rb"[A-Za-z0-9+/_-]{16,}={0,2}")


def password_of(text: str) -> str | None:
    """The password of a URL, as it stands there."""
    found = re.match(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#:@]*:([^/?#@]+)@", text)
    return found.group(1) if found else None


def forms(secret: str) -> dict[bytes, str]:
    """Needle → the name of its form. The plainest name wins where two forms are the same bytes."""
    found: dict[bytes, str] = {}

    def add(form: str, *texts: str | bytes) -> None:
        for text in texts:
            needle = text if isinstance(text, bytes) else text.encode()
            if len(needle) >= SHORTEST:
                found.setdefault(needle, form)

    decoded = unquote(secret) if PERCENT.search(secret.encode()) else None
    password = password_of(secret)
    add("raw", secret)
    if decoded is not None:
        add("percent-decoded", decoded)
    for plain in filter(None, (secret, decoded)):
        _encoded(plain, add)
    if password is not None:
        for needle, form in forms(password).items():
            add(f"password of the URL, {form}", needle)
    elif SPECIAL.search(secret):
        # A URL is not cut: its scheme, host and database are no secrets.
        for plain in filter(None, (secret, decoded)):
            add("fragment", *(part for part in SPECIAL.split(plain) if len(part) >= FRAGMENT))
    return found


def _encoded(plain: str, add) -> None:
    for encoded in {quote(plain, safe=""), quote(plain, safe="/"), quote(plain, safe=" +"), quote_plus(plain), quote_plus(plain, safe="/")}:
        add("percent-encoded", encoded, re.sub(r"%[0-9A-F]{2}", lambda match: match.group().lower(), encoded))
    json_text = json.dumps(plain)[1:-1]
    go_text = "".join(f"\\u{ord(c):04x}" if c in "<>&" else c for c in json.dumps(plain, ensure_ascii=False)[1:-1])
    for escaped in (json_text, go_text):
        add("escaped for JSON", escaped, escaped.replace("/", "\\/"))
        add("escaped for JSON twice", json.dumps(escaped)[1:-1])
    add("quoted for a shell", shlex.quote(plain), re.sub(r"([^A-Za-z0-9_./-])", r"\\\1", plain), re.sub(r'(["\\$`])', r"\\\1", plain))
    add("quoted for SQL or YAML", plain.replace("'", "''"))
    add("quoted for a pgpass file or libpq", re.sub(r"([:\\])", r"\\\1", plain), re.sub(r"(['\\])", r"\\\1", plain))
    add("base64", *_base64(plain.encode()))
    add("hexadecimal", plain.encode().hex(), plain.encode().hex().upper())


def _base64(secret: bytes) -> Iterator[bytes]:
    """What stands in the base64 of a longer text that holds the secret, wherever it begins in it."""
    for before in range(3):
        encoded = base64.b64encode(b"\0" * before + secret)
        # The first characters depend on what goes before, the last on what follows.
        start = (0, 2, 3)[before]
        end = len(encoded) if (before + len(secret)) % 3 == 0 else len(encoded.rstrip(b"=")) - 1
        inner = encoded[start:end]
        if len(inner) >= FRAGMENT:
            yield inner
            yield inner.translate(bytes.maketrans(b"+/", b"-_"))


def readings(text: bytes, depth: int = 2) -> Iterator[bytes]:
    """The text, and what it becomes when escapes are taken back: percent, backslash, base64, gzip inside base64."""
    seen: set[bytes] = set()
    waiting = [(text, depth)]
    while waiting:
        reading, left = waiting.pop()
        if reading in seen:
            continue
        seen.add(reading)
        yield reading
        if left == 0:
            continue
        if PERCENT.search(reading):
            waiting.append((unquote_to_bytes(reading), left - 1))
            waiting.append((unquote_to_bytes(reading.replace(b"+", b" ")), left - 1))
        if b"\\" in reading:
            waiting.append((ESCAPE.sub(_unescape, reading), left - 1))
        tokens = b"\n".join(filter(None, map(_from_base64, TOKEN.findall(reading))))
        if tokens:
            waiting.append((tokens, left - 1))


def _unescape(match: re.Match) -> bytes:
    body = match.group(1)
    if body[:1] == b"u":
        return chr(int(body[1:], 16)).encode("utf-8", "replace")
    if body[:1] == b"x" and len(body) == 3:
        return bytes([int(body[1:], 16)])
    if len(body) == 3:
        return bytes([int(body, 8) & 0xFF])
    return NAMED.get(body, body)


def _from_base64(token: bytes) -> bytes | None:
    plain = token.rstrip(b"=").translate(bytes.maketrans(b"-_", b"+/"))
    plain = plain[: len(plain) - (len(plain) % 4 == 1)]
    decoded = base64.b64decode(plain + b"=" * (-len(plain) % 4))
    if decoded[:2] == b"\x1f\x8b":
        try:
            return zlib.decompressobj(31).decompress(decoded, 16 << 20)
        except zlib.error:
            return decoded
    # Words and paths decode to noise; only what reads as text can hold a secret.
    printable = sum(32 <= byte < 127 or byte in (9, 10, 13) for byte in decoded)
    return decoded if printable * 4 >= len(decoded) * 3 else None

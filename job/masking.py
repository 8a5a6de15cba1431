"""The one function that takes credentials out of a text. Both programs use it; standard library only.

It finds them in two ways. What a URI, a header or a key file looks like is known by its form. The values of variables such as
AWS_SECRET_ACCESS_KEY, the files that such variables name, and what `mnist-k8s` reads from a kubeconfig are remembered, and are
masked wherever they come up again: whole or cut, quoted for a URL, in JSON, or in base64.
"""

import base64
import contextlib
import json
import os
import re
import stat
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping

MASK = "***"
_MIN_CHARACTERS = 8
"""Of a value that is remembered: shorter ones would mask parts of ordinary words."""
_HEAD_CHARACTERS = 16
"""So much of a value that was cut by somebody else is still taken for it."""
_MAX_FILE_BYTES = 65_536

_SECRET_NAME = re.compile(
    r"TOKEN|SECRET|PASSW|PASSPHRASE|PASS$|_PWD$|CREDENTIAL|_AUTH$|AUTHORIZATION|PRIVATE|SIGNATURE|COOKIE|API_?KEY|ACCOUNT_?KEY|_KEY$"
    r"|_KEY_BASE64$|_PAT$|^SIG$|^TF_ENCRYPTION$|CONNECTION_STRING|_DSN$|GOOGLE_SERVICE_ACCOUNT",
    re.IGNORECASE,
)
_FILE_NAME = re.compile(r"_FILE$|_PATH$|CREDENTIALS$|GOOGLE_SERVICE_ACCOUNT$", re.IGNORECASE)
"""Of variables that hold the path of a file with a secret, or by mistake the secret itself."""
_NO_SECRET_NAME = re.compile(r"_TYPE$|_URL$|_FULL_URI$", re.IGNORECASE)
_PUBLIC_FIELDS = frozenset(
    {
        *(
            "type",
            "project_id",
            "quota_project_id",
            "client_id",
            "client_email",
            "auth_uri",
            "token_uri",
            "universe_domain",
        ),
        *("audience", "auth_provider_x509_cert_url", "client_x509_cert_url"),
    }
)
"""Of a key file of Google: printed by its own programs."""

_URI_WORD = r"""[^\s"<>]{0,500}"""
_NO_IMAGE = r"(?!sha\d+:)"
"""`@sha256:` in the name of an image is no host."""
_FORMS = tuple(
    (re.compile(pattern, re.IGNORECASE | re.DOTALL), replacement)
    for pattern, replacement in (
        (rf"//[^\s/\"<>]{{0,500}}@{_NO_IMAGE}", rf"//{MASK}@"),
        (rf"//[^\s/:@\"<>]{{1,100}}:{_URI_WORD}@{_NO_IMAGE}", rf"//{MASK}@"),  # a password may hold a /
        (rf"\A[^\s/:@\"'{{]+:[^\s/\"']*@{_NO_IMAGE}", rf"{MASK}@"),  # a proxy without http://
        (
            r"((?:[?&;]|\\u0026)(?:x-(?:amz|goog)-(?:signature|credential|security-token)|sig|signature"
            r"|[\w-]{0,40}(?:token|secret|passw|key)[\w-]{0,40})=)[^&;\s\"'<>]+",
            rf"\1{MASK}",
        ),
        (
            r"((?:authorization|x-amz-security-token|x-auth-token|cookie)\\?[\"']?\s*[:=]\s*\\?[\"']?(?:(?:bearer|basic)\s+)?)"
            r"(?!bearer\b|basic\b)[^\s\"',\\]+",
            rf"\1{MASK}",
        ),
        (r"\b(bearer\s+)[A-Za-z0-9._~+/=-]{8,}", rf"\1{MASK}"),
        (r"\b(basic\s+)(?=[a-z]*[0-9+/=])[a-z0-9+/=]{8,}", rf"\1{MASK}"),
        (r"(<(?:SecretAccessKey|SessionToken|Password)>)[^<]+", rf"\1{MASK}"),
        (r"\b(signature=)[0-9a-f]{16,}", rf"\1{MASK}"),
        (r"\beyJ[a-z0-9_-]{5,}(?:\.[a-z0-9_-]+){0,2}", MASK),  # a JSON web token
        (r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", MASK),
        (
            r"(\"(?:private_key|private_key_id|client_secret|refresh_token|access_token|id_token|SecretAccessKey|SessionToken)\""
            r"\s*:\s*\")(?:[^\"\\]|\\.)*",
            rf"\1{MASK}",
        ),
    )
)

_remembered: dict[str, frozenset[str]] = {}
"""The beginning of a value -> all values that begin so."""


def masked(text: str) -> str:
    """The text with `***` in the place of every credential."""
    for head, values in _remembered.items():
        if head in text:
            text = _without(text, head, values)
    for pattern, replacement in _FORMS:
        text = pattern.sub(replacement, text)
    return text


def remember_environment(environ: Mapping[str, str], arguments: Iterable[str] = ()) -> None:
    """Mask from now on what the variables hold that look like credentials, and passwords in all URIs; sets nothing."""
    for name, value in environ.items():
        remember(*_secrets_of(name, value))
    remember_passwords_of(*environ.values(), *arguments)


def remember_passwords_of(*uris: str) -> None:
    """Mask from now on the passwords that stand in URIs."""
    remember(*(secret for uri in uris for secret in _userinfo(uri)))


def remember(*secrets: str) -> None:
    """Mask these values from now on; those of fewer than 8 characters are left."""
    global _remembered  # noqa: PLW0603 - one process has one environment
    grown = dict(_remembered)
    for form in {form for secret in secrets for piece in _pieces(secret) for form in _forms(piece)}:
        if len(form) >= _MIN_CHARACTERS:
            head = form[:_HEAD_CHARACTERS]
            grown[head] = grown.get(head, frozenset()) | {form}
    _remembered = grown  # at once: other threads may be masking


def forget() -> None:
    """Mask no remembered value any more; for tests that give a process several environments."""
    global _remembered  # noqa: PLW0603
    _remembered = {}


def is_secret_name(name: str) -> bool:
    """Whether a variable of that name may hold a credential: its value is masked, and recorded nowhere."""
    return _SECRET_NAME.search(name) is not None and _NO_SECRET_NAME.search(name) is None


def _secrets_of(name: str, value: str) -> Iterator[str]:
    """What a variable holds that is to be masked; of one that names a file, what is in the file."""
    if is_secret_name(name):
        yield _content_of(value) if _FILE_NAME.search(name) and _is_path(value) else value
    elif name.upper().endswith("_PROXY"):
        yield from _userinfo(f"//{value}")  # curl and others take one without http://


def _is_path(value: str) -> bool:
    return value.startswith(("/", "./", "../", "~/")) or os.path.isfile(value)  # noqa: PTH113 - takes any text


def _content_of(path: str) -> str:
    """The beginning of a regular file; empty when it cannot be read, which whoever needs it will say."""
    with contextlib.suppress(OSError, ValueError):
        descriptor = os.open(os.path.expanduser(path), os.O_RDONLY | os.O_NONBLOCK)  # noqa: PTH111 - fails without a home
        with open(descriptor, "rb") as file:
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                return file.read(_MAX_FILE_BYTES).decode(errors="replace")
    return ""


def _userinfo(text: str) -> Iterator[str]:
    """The password of a URI, or the token in the place of its user; and what a header makes of both."""
    if found := re.search(rf"//([^/:@\s]*):(\S*)@{_NO_IMAGE}", text):
        yield from (found[2], urllib.parse.unquote(f"{found[1]}:{found[2]}"))
    elif found := re.search(rf"//([^/:@\s]+)@{_NO_IMAGE}", text):
        yield found[1]


def _pieces(secret: str) -> Iterator[str]:
    """A secret as a whole, and its parts that come up alone: lines of a key, fields of a key file, the signature of a token."""
    secret = secret.strip()
    yield secret
    try:
        yield from (piece for text in _texts_in(json.loads(secret)) if text != secret for piece in _pieces(text))
        return
    except (ValueError, RecursionError):
        pass  # no JSON
    if secret.startswith("{"):  # a key file that is damaged
        yield from re.findall(rf"""[^\s"'{{}}:,\\]{{{_HEAD_CHARACTERS},}}""", secret)
    yield from (line.strip() for line in secret.splitlines() if not line.startswith("-----"))
    for part in re.split("[?&;]", secret):
        name, _, value = part.partition("=")
        if value and is_secret_name(name):
            yield value


def _texts_in(content: object) -> Iterator[str]:
    """What a key file holds that is not public."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        yield from (text for item in content for text in _texts_in(item))
    elif isinstance(content, dict):
        yield from (text for name, item in content.items() if name not in _PUBLIC_FIELDS for text in _texts_in(item))


def _forms(piece: str) -> Iterator[str]:
    """How a value may be written: as it is, in JSON, in Python, in a URL, in base64."""
    yield piece
    yield json.dumps(piece)[1:-1]
    yield repr(piece)[1:-1]
    yield urllib.parse.quote(piece, safe="", errors="replace")
    yield urllib.parse.unquote(piece)
    data = piece.encode(errors="surrogateescape")
    for shift, start in ((0, 0), (1, 2), (2, 3)):  # of a longer text: a byte is in one of three places of four letters
        letters = base64.b64encode(b"\0" * shift + data).decode()
        yield letters[start : (shift + len(data)) * 8 // 6]


def _without(text: str, head: str, values: Iterable[str]) -> str:
    """The text without the values that begin with `head`, whole or cut after it."""
    start = 0
    while (found := text.find(head, start)) >= 0:
        longest = max(_num_alike(text, found, value) for value in values)
        text = text[:found] + MASK + text[found + longest :]
        start = found + len(MASK)
    return text


def _num_alike(text: str, start: int, value: str) -> int:
    """How many characters of a value are in a text from `start` on."""
    pairs = enumerate(zip(text[start : start + len(value)], value, strict=False))
    return next((index for index, (one, other) in pairs if one != other), min(len(value), len(text) - start))

"""The one place that knows credentials: which names say that a value is one, and how it is taken out of a text.

Both programs use it; standard library only. A credential is found in two ways. By its form: a URI with a password, a header, a
signed address, `password=...`, a private key. By its value: what variables such as AWS_SECRET_ACCESS_KEY hold, what is in the
files that they name, and what `mnist-k8s` reads from a kubeconfig is remembered, and is masked wherever it comes up again.

A word that may be an honest name is neither remembered nor masked by its form: see `_PLAIN`.
"""

import base64
import binascii
import contextlib
import functools
import html
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
_MAX_DEPTH = 32
"""Of JSON within JSON."""

_LOGIN_WORDS = r"(?:PASSWORD|PASSWD|PASSPHRASE|(?:^|_|DB|PG|USER|ROOT)PASS|(?<!^)(?<!^OLD)PWD|(?:^|_|DB)PW)S?"
_KEY = (
    "(?:ACCESS|SECRET|PRIVATE|API|ACCOUNT|STORAGE|MASTER|SHARED|SAS|CUSTOMER|CLIENT|ENCRYPTION|SIGNING|AUTH|SSH|TLS|SSL|HMAC"
    "|SERVICE_ACCOUNT)_?KEYS?"
)
_SECRET_NAME = re.compile(
    rf"(?:{_LOGIN_WORDS}|SECRETS?|TOKEN|CREDENTIALS?|(?:^|_|DB)CREDS?|(?:^|_)AUTH|AUTHORIZATION|(?:^|_)COOKIES?|(?:^|_)PAT"
    rf"|(?:^|_)PRIVATE|SIGNATURE|(?:^|_)SIG|(?:^|_)DSN|CONNECTION_?STRING|{_KEY}|PRIVATE_KEY_ID)"
    r"(?:_?(?:FILE|PATH|BASE64|B64|JSON|DATA|CONFIG|VALUE|\d+))?$|^PGPASSFILE$|^TF_TOKEN_|^TF_ENCRYPTION$|^GOOGLE_SERVICE_ACCOUNT$"
)
"""A word for a secret at the end of a name in capitals: SECRET_NAME, SORT_KEY and TOKEN_SERVICE_SERVICE_HOST name no secret."""
_SURE_NAME = re.compile(rf"(?:{_LOGIN_WORDS}|CLIENT_SECRET|ACCESS_KEY|PRIVATE_KEY|(?:ACCESS|REFRESH|ID)_TOKEN)$")
"""Of values that are secret whatever they look like: a password may be a word."""
_PUBLIC_NAME = re.compile(r"(?:^|_)(?:PAD|EOS|BOS|UNK|MASK|SEP|CLS|START|END|STOP|PAGE|NEXT|CONTINUATION)_TOKEN$")
_FILE_NAME = re.compile(r"FILE$|PATH$|CREDENTIALS$|GOOGLE_SERVICE_ACCOUNT$")
"""Of variables that hold the path of a file with a secret, or by mistake the secret itself."""

_PLAIN = r"(?:[A-Za-z]?[a-z]{0,14}|[a-z]+(?:_[a-z]+)+|\$?\{?[A-Z]+(?:_[A-Z]+)+\}?)"
"""Text that may be a word, or the name of a setting, metric, choice or variable: `training`, `test_accuracy`, `HF_TOKEN`."""
_NO_IMAGE = r"(?!sha\d+:)"
"""`@sha256:` in the name of an image is no host."""

_NAME = re.compile(
    r"(?:(?P<query>[?&;]|u0026)|(?<![\w.-])-{0,2})(?P<name>[A-Za-z_][\w.-]{0,80}+)\\{0,8}[\"']?\s{0,3}(?P<sign>[=:])\s{0,3}+"
)
_VALUE = re.compile(
    r"(?:(?P<slashes>\\{0,8})(?P<quote>[\"']))(?P<quoted>(?:(?!(?<!\\)(?P=slashes)(?P=quote))[^\r\n])*)"
    r"|(?P<bare>[^\s\"'\\&;,<>()\[\]{}]+)"
)
"""`name=value`, `name: value`, `"name": "value"`, and the same as JSON within JSON."""
_SETTING = re.compile(
    r"^[ \t]*(?:-[ \t]+|export[ \t]+)?[\"']?([\w.-]{1,80})[\"']?[ \t]*[=:][ \t]*([^\s][^\r\n]*)$", re.MULTILINE
)
"""A line of an ini, .env or YAML file."""
_PASSFILE_LINE = re.compile(r"^(?:[^:\s]{1,200}:){4}(\S+)$", re.MULTILINE)
"""Of PGPASSFILE: host, port, database, user, password."""

_HEADER = r"(?:(?:proxy-)?authorization\\{0,8}[\"']?[ \t]{0,3}[:=]|(?:set-)?cookie\\{0,8}[\"']?[ \t]{0,3}:)[ \t]{0,3}+"
_SINGLE = rf"(?:(?-i:{_PLAIN})|-?\d[\d.]*)\s*(?:[,;}}\])\"'\\]|$)"
_CREDENTIALS = rf"(?:(?:bearer|basic)[ ]+(?!\*)|(?!{_SINGLE}|(?:bearer|basic)?[ ]*\*\*\*))"
"""Of a header; a single word is none."""
_FORMS = tuple(
    (re.compile(pattern, re.IGNORECASE | re.MULTILINE), replacement)
    for pattern, replacement in (
        (rf"({_HEADER}(\\{{0,8}}[\"']){_CREDENTIALS})(?:(?!(?<!\\)\2)[^\r\n])+", rf"\1{MASK}"),
        (rf"({_HEADER}(?![\\\"']){_CREDENTIALS})(?:=\\?\"[^\"\r\n\\]{{0,500}}\\?\"|[^\"'\\\r\n{{}}])+", rf"\1{MASK}"),
        (
            r"((?:x-amz-security-token|x-auth-token|x-api-key)\\{0,8}[\"']?\s{0,3}[:=]\s{0,3}\\{0,8}[\"']?)[^\s\"',\\]+",
            rf"\1{MASK}",
        ),
        (rf"\A[^\s/:@\"'{{]{{1,100}}:[^\s/\"']{{0,500}}@{_NO_IMAGE}", rf"{MASK}@"),  # a proxy without http://
        (r"([?&]key=)[\w-]{30,}", rf"\1{MASK}"),
        (r"(<(?:SecretAccessKey|SessionToken|Password)>)[^<]+", rf"\1{MASK}"),
        (
            r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY(?: BLOCK)?-----(?s:.*?)(?:-----END [A-Z ]{0,40}PRIVATE KEY(?: BLOCK)?-----|\Z)",
            MASK,
        ),
    )
)
_URI = re.compile(r"(?<![\w/.~-])//([^\s\"<>]{1,1000})")
"""What follows `//`; after a letter it stands in a path: `/mnt//team@corp`."""
_SCHEME = re.compile(r"\b(bearer\s+)([A-Za-z0-9._~+/=-]{16,})|\b(basic\s+)([A-Za-z0-9+/=]{4,})", re.IGNORECASE)
_WEB_TOKEN = re.compile(r"(?<![\w-])(eyJ[A-Za-z0-9_-]{5,2000})\.[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]*)?")

_remembered: dict[str, frozenset[str]] = {}
"""The beginning of a value -> all values that begin so."""


def masked(text: str) -> str:
    """The text with `***` in the place of every credential."""
    for head, values in _remembered.items():
        if _anchor(head) in text:
            text = _without(text, head, values)
    for pattern, replacement in _FORMS:
        text = pattern.sub(replacement, text)
    text = _URI.sub(_mask_uri, text)
    text = _without_pairs(text)
    text = _SCHEME.sub(_mask_scheme, text)
    return _WEB_TOKEN.sub(lambda found: MASK if _is_json(found[1]) else found[0], text)


def without_secrets(value: object, *, name: str = "") -> object:
    """A plain value with `***` in the place of every text that is a credential, or that its key says to be one; keys stay.

    Args:
        name: the key that the value stands under.
    """
    if isinstance(value, dict):
        return {key: without_secrets(item, name=str(key)) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_secrets(item, name=name) for item in value]
    if isinstance(value, (str, int, float)) and not isinstance(value, bool) and _is_secret(name, value):
        return MASK
    return masked(value) if isinstance(value, str) else value


def remember_environment(environ: Mapping[str, str], arguments: Iterable[str] = ()) -> None:
    """Mask from now on what the variables hold that look like credentials, and passwords in all URIs; sets nothing."""
    for name, value in environ.items():
        remember_variable(name, value)
    remember_passwords_of(*environ.values(), *arguments)


def remember_variable(name: str, value: str) -> None:
    """Mask from now on what a variable of that name holds; of one that names a file, what is in the file."""
    if is_secret_name(name):
        is_file = _FILE_NAME.search(_in_capitals(name)) and _is_path(value)
        remember(_content_of(value) if is_file else value)
    elif name.upper().endswith("_PROXY"):
        remember_passwords_of(f"//{value}")  # curl and others take one without http://


def remember_passwords_of(*uris: str) -> None:
    """Mask from now on the passwords that stand in URIs."""
    _remember(secret for uri in uris for secret in _userinfo(uri))


def remember(*secrets: str) -> None:
    """Mask these values from now on, and the parts of them that come up alone.

    Left are values of fewer than 8 characters, and plain words: an honest name may be the same.
    """
    _remember(piece for secret in secrets for piece in _pieces(secret.strip()))


def forget() -> None:
    """Mask no remembered value any more; for tests that give a process several environments."""
    global _remembered  # noqa: PLW0603 - one process has one environment
    _remembered = {}


def is_secret_name(name: str) -> bool:
    """Whether a variable, field or parameter of that name holds a credential: its value is masked, and recorded nowhere."""
    capitals = _in_capitals(name)
    return _SECRET_NAME.search(capitals) is not None and _PUBLIC_NAME.search(capitals) is None


@functools.lru_cache(maxsize=4096)
def _in_capitals(name: str) -> str:
    """`clientSecret`, `client-secret` and `client.secret` are CLIENT_SECRET."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).replace("-", "_").replace(".", "_").upper()


def _is_secret(name: str, value: object) -> bool:
    """Whether the value of that name is a credential, and not a word, a path or a number that is none."""
    text = str(value)
    if not text or MASK in text or not is_secret_name(name):
        return False
    capitals = _in_capitals(name)
    if _SURE_NAME.search(capitals):
        return not re.fullmatch(r"(?i:none|null|true|false|~)|\$\{?[A-Z_]+\}?", text)
    is_path = _FILE_NAME.search(capitals) and _is_path(text)
    is_number = not isinstance(value, str) or re.fullmatch(r"[\d.]{1,7}", text)
    return not (is_path or is_number or re.fullmatch(_PLAIN, text))


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


def _end_of_userinfo(rest: str) -> int:
    """Where in what follows `//` the `@` after a password or token is; -1 for none. A password may hold `/` and `@`."""
    last = max((found.start() for found in re.finditer(rf"@{_NO_IMAGE}", rest)), default=-1)
    if last < 0:
        return -1
    authority, _, path = rest.partition("/")
    host, colon, port = authority.partition(":")
    has_password = colon and host and "@" not in host and not (path and re.fullmatch(r"\d{1,5}", port))
    return last if has_password else rest.rfind("@", 0, min(last + 1, len(authority)))


def _mask_uri(found: re.Match[str]) -> str:
    parts = found[0].split("//")
    for number in range(1, len(parts)) if "@" in found[0] else ():
        rest = "//".join(parts[number:])
        end = _end_of_userinfo(rest)
        if end >= 0:
            return "//".join([*parts[:number], MASK + rest[end:]])
    return found[0]


def _without_pairs(text: str) -> str:
    """The text without the value of every `name=value` whose name says that it is a secret."""
    kept, end, position = [], 0, 0
    while name := _NAME.search(text, position):
        position = name.end()
        value = is_secret_name(name["name"]) and _VALUE.match(text, position)
        if value and _is_pair_secret(name, value):
            start = value.start("bare" if value["bare"] else "quoted")
            kept += [text[end:start], MASK]
            end = position = value.end()
    return "".join([*kept, text[end:]])


def _is_pair_secret(name: re.Match[str], value: re.Match[str]) -> bool:
    """In a query any value is one; after a `:` a bare word or number is none, as JSON and messages have them."""
    text = value["bare"] or value["quoted"]
    if name["query"] and name["sign"] == "=":
        return text != MASK
    is_other = name["sign"] == ":" and value["bare"] and re.fullmatch(rf"{_PLAIN}|-?[\d.e+-]+", text)
    return not is_other and _is_secret(name["name"], text)


def _mask_scheme(found: re.Match[str]) -> str:
    """`Bearer` with what is no word, `Basic` with what is a user and password in base64."""
    if found[1]:
        return found[0] if re.fullmatch(_PLAIN, found[2]) else found[1] + MASK
    return found[3] + MASK if b":" in _decoded(found[4]) else found[0]


def _is_json(letters: str) -> bool:
    """Whether the first part of what may be a JSON web token is one."""
    with contextlib.suppress(ValueError):
        return isinstance(json.loads(_decoded(letters)), dict)
    return False


def _decoded(letters: str) -> bytes:
    """Of either alphabet of base64; empty when it is none."""
    letters = letters.replace("+", "-").replace("/", "_").rstrip("=")
    with contextlib.suppress(binascii.Error):
        return base64.urlsafe_b64decode(letters + "=" * (-len(letters) % 4))
    return b""


def _userinfo(text: str) -> Iterator[str]:
    """The passwords of URIs, long tokens in the place of a user, secrets in a query; and what a header makes of a password."""
    for found in _URI.finditer(text):
        end = _end_of_userinfo(found[1])
        user, colon, password = found[1][: max(end, 0)].partition(":")
        if colon:
            yield from (password, urllib.parse.unquote(password), urllib.parse.unquote(f"{user}:{password}"))
        elif len(user) >= _HEAD_CHARACTERS:
            yield user


def _pieces(secret: str, depth: int = 0) -> Iterator[str]:
    """What of a secret is surely secret: of JSON, settings or a URI that it holds, only what their names say; else all of it."""
    with contextlib.suppress(ValueError, RecursionError):
        content = json.loads(secret)
        if isinstance(content, (dict, list)):
            yield from _fields_of(content, depth + 1, is_secret=isinstance(content, list))
            return
        secret = content if isinstance(content, str) else secret
    fields = [*_fields_in(secret), *_userinfo(secret), *_userinfo(f"//{secret}")]
    yield from fields
    if not fields or "\n" not in secret:
        yield from ("" if "://" in secret and fields else secret, secret.split(" ")[-1])
        yield from _user_and_password(secret.split(" ")[-1])
    if secret.startswith("{"):  # a key file that is damaged
        yield from re.findall(rf"""[^\s"'{{}}:,\\]{{{_HEAD_CHARACTERS},}}""", secret)
    yield from re.findall(r"^\s*([^\s-]\S{15,})\s*$", secret, re.MULTILINE)  # the lines of a key


def _fields_of(content: object, depth: int, *, is_secret: bool) -> Iterator[str]:
    """The texts of JSON whose names say that they are secret, and those of JSON that is a text in it."""
    if isinstance(content, dict):
        for name, item in content.items():
            yield from _fields_of(item, depth, is_secret=is_secret_name(name))
    elif isinstance(content, list):
        for item in content:
            yield from _fields_of(item, depth, is_secret=is_secret)
    elif isinstance(content, str) and depth < _MAX_DEPTH and (is_secret or content.lstrip().startswith(("{", "["))):
        yield from _pieces(content.strip(), depth)


def _fields_in(text: str) -> Iterator[str]:
    """What secret names stand before: in the lines of a file, in a query, in a connection string."""
    yield from (value.strip("\"' \t") for name, value in _SETTING.findall(text) if _is_secret(name, value))
    yield from _PASSFILE_LINE.findall(text)
    for part in re.split(r"[?&;\s]", text):
        name, _, value = part.partition("=")
        if value and _is_secret(name, value):
            yield value.strip("\"'")


def _user_and_password(text: str) -> Iterator[str]:
    """Of `user:password`, as it is or in base64."""
    decoded = _decoded(text).decode(errors="replace") if re.fullmatch(r"[A-Za-z0-9+/_-]+=*", text) else ""
    for pair in (text, decoded):
        user, _, password = pair.partition(":")
        if password and pair.isprintable() and re.fullmatch(r"[^\s/:@]{1,100}", user):
            yield password


def _remember(pieces: Iterable[str]) -> None:
    global _remembered  # noqa: PLW0603
    grown = dict(_remembered)
    for piece in {piece.strip() for piece in pieces}:
        if len(piece) >= _MIN_CHARACTERS and not re.fullmatch(_PLAIN, piece):
            for form in _forms(piece):
                head = form[:_HEAD_CHARACTERS]
                grown[head] = grown.get(head, frozenset()) | {form}
    _remembered = grown  # at once: other threads may be masking


def _forms(piece: str) -> set[str]:
    """What a value may become as a whole: unquoted, or in base64 at any place of a longer text. Quoting is `_written`'s."""
    data = piece.encode(errors="surrogateescape")
    forms = {piece, urllib.parse.unquote(piece)}
    for shift, start in ((0, 0), (1, 2), (2, 3)):  # a byte is in one of three places of four letters
        letters = base64.b64encode(b"\0" * shift + data).decode()[start : (shift + len(data)) * 8 // 6]
        forms |= {letters, letters.replace("+", "-").replace("/", "_")}
    return {form for form in forms if len(form) >= _MIN_CHARACTERS}


@functools.lru_cache(maxsize=4096)
def _anchor(head: str) -> str:
    """The longest part of a head that is written in one way only."""
    return max(re.findall(r"[A-Za-z0-9]+", head), key=len, default="")


@functools.lru_cache(maxsize=1024)
def _head_pattern(head: str) -> re.Pattern[str]:
    return re.compile("".join(map(_written, head)))


@functools.lru_cache(maxsize=1024)
def _written(char: str) -> str:
    """A pattern of all that JSON, Python, HTML and a URL, quoted once or twice, write for a character."""
    if char.isascii() and char.isalnum():
        return char
    data = char.encode(errors="surrogateescape")
    percent = ["".join(f"{sign}{byte:02x}" for byte in data) for sign in ("%", "%25")]
    escaped = [json.dumps(char)[1:-1].lstrip("\\"), repr(char)[1:-1].lstrip("\\"), f"u{ord(char):04x}", char]
    ways = [rf"(?i:{way})" for way in percent] + [
        rf"\\{{0,8}}(?i:{re.escape(way)})" for way in dict.fromkeys(escaped) if way
    ]
    ways += [re.escape(html.escape(char)), rf"&#{ord(char)};", *([r"\+"] if char == " " else [])]
    if char == "\\":
        ways.insert(0, r"\\{1,8}")
    return f"(?:{'|'.join(ways)})"


@functools.lru_cache(maxsize=1024)
def _one(char: str) -> re.Pattern[str]:
    return re.compile(_written(char))


def _without(text: str, head: str, values: Iterable[str]) -> str:
    """The text without the values that begin with `head`, whole or cut after it."""
    kept, end = [], 0
    pattern = _head_pattern(head)
    while found := pattern.search(text, end):
        kept += [text[end : found.start()], MASK]
        end = max(_end_of(text, found.end(), value[len(head) :]) for value in values)
    return "".join([*kept, text[end:]])


def _end_of(text: str, end: int, rest: str) -> int:
    """Where in a text the rest of a value ends that goes on at `end`."""
    for char in rest:
        found = _one(char).match(text, end)
        if not found:
            break
        end = found.end()
    return end

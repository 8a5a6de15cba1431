"""The one parser of every URI and path setting: stores, folders, files and addresses of services. Standard library only.

A place is taken as it is written: nothing in it is decoded, cut off or joined, so that what is stored lies where it is printed.
What others would read in another way is refused.

Each function raises ValueError with the rule and what to do. The caller adds the name of the setting or option, and `shown` of
what was received.
"""

import os
import re
from pathlib import Path
from urllib.parse import urlsplit

from job.masking import masked

OBJECT_STORES = ("s3", "gs", "az")
_KNOWN = "file:, s3://, gs:// or az://"
_OTHER_NAMES = {
    **{"s3a": "s3", "s3n": "s3", "gcs": "gs"},
    **dict.fromkeys(("abfs", "abfss", "adl", "azure", "wasb", "wasbs"), "az"),
}
"""Scheme that other programs know -> ours."""
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_BUCKET = re.compile(r"[A-Za-z0-9$][A-Za-z0-9._-]*")
_HOST = re.compile(r"[a-z0-9._-]+|[0-9a-f:.]*:[0-9a-f:.]*(%[a-z0-9._-]+)?")
"""A name as DNS has it, or an address; obstore panics at others, such as names with umlauts."""
_MAX_NAME_BYTES, _MAX_PATH_BYTES = 255, 4095
"""Of one folder or file, and of a whole path: more fits no file system."""

_UNPRINTABLE = "\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff"
_IN_BUCKET = rf"(s3|gs|az)://[A-Za-z0-9$][A-Za-z0-9._-]*(/[^/?#%\\{_UNPRINTABLE}]+)*/?"
_FIRST_NAME = rf"([^/:\\{_UNPRINTABLE}]+|[^A-Za-z/\\{_UNPRINTABLE}][^/\\{_UNPRINTABLE}]*)"
_IN_FOLDER = rf"({_FIRST_NAME}(/[^\\{_UNPRINTABLE}]*)?|/[^\\{_UNPRINTABLE}]*)"
REFUSED_PATTERN = r"^[a-z0-9]+://.*/\.\.?(/|$)|^ | $"
STORE_PATTERN = rf"^(file:[^{_UNPRINTABLE}]+|{_IN_BUCKET})?$"
_AFTER_FILE = rf"file:[^\\{_UNPRINTABLE}]+"
PATH_PATTERN = rf"^({_AFTER_FILE}|{_IN_FOLDER})?$"
PLACE_PATTERN = rf"^({_AFTER_FILE}|{_IN_FOLDER}|{_IN_BUCKET})$"
URL_PATTERN = rf"^(https?://[^/@?#\\\s{_UNPRINTABLE}]+(/[^?#\\\s{_UNPRINTABLE}]*)?)?$"
"""What the chart's schema can say of these rules: an empty text is none there, and an empty store URI is its own volume.

REFUSED_PATTERN is what no URI of a store or of data may match: `.` and `..` in a prefix, blanks around it."""


def has_scheme(text: str) -> bool:
    """Whether `text` is a URI: it has a `:` before its first `/`."""
    return _SCHEME.match(text) is not None


def is_object_store(text: str) -> bool:
    """Whether `text` is in an object store, rather than a folder of this machine."""
    return text.partition("://")[0] in OBJECT_STORES


def parse_path(text: str) -> Path:
    """A folder or file of this machine: a path or a `file:` URI; `~` is the home folder, what is relative stays so.

    Raises:
        ValueError: a URI of something else, or no path.
    """
    _check_text(text)
    if has_scheme(text):
        if not text.startswith("file:"):
            raise ValueError("must be a path of this machine, not a URI; bring it here first")
        text = _path_of_file_uri(text)
    if len(text.encode()) > _MAX_PATH_BYTES or any(len(name.encode()) > _MAX_NAME_BYTES for name in text.split("/")):
        raise ValueError(f"must be at most {_MAX_PATH_BYTES} bytes long, and each name in it {_MAX_NAME_BYTES}")
    return _expand_home(text)


def parse_folder(text: str) -> Path:
    """As `parse_path`, and absolute: relative paths are taken from the working folder.

    Raises:
        ValueError: as from `parse_path`; the working folder is needed, and was removed.
    """
    path = parse_path(text)
    try:
        folder = os.path.abspath(path)
    except FileNotFoundError as error:
        raise ValueError("is relative to the working folder, which was removed; change to another folder") from error
    return Path("/" + folder.lstrip("/"))  # POSIX lets two slashes in front stand


def check_store_uri(text: str) -> str:
    """The URI of a store, unchanged: `file:` with a path, or `s3://`, `gs://` or `az://` with a bucket and an optional prefix.

    Raises:
        ValueError: it is none, holds credentials, or would be read in another way by others.
    """
    _check_text(text)
    if not has_scheme(text):
        raise ValueError(f"must start with {_KNOWN} and name a folder or bucket; a folder is file:{text}")
    if text.startswith("file:"):
        parse_folder(text)
    else:
        _check_bucket_uri(text)
    return text


def check_place(text: str) -> str:
    """A folder of this machine, or the URI of a store, unchanged.

    Raises:
        ValueError: as from `check_store_uri` and `parse_folder`.
    """
    if has_scheme(text):
        return check_store_uri(text)
    parse_folder(text)
    return text


def to_store_uri(place: str) -> str:
    """The store URI of what `check_place` lets pass."""
    return place if has_scheme(place) else "file:" + re.sub("^/+", "/", place)


def check_url(text: str) -> str:
    """The address of an HTTP service, unchanged.

    Raises:
        ValueError: it is none; it holds credentials, a query or a fragment.
    """
    _check_text(text)
    rule = "must be a URL that starts with http:// or https:// and holds no credentials"
    is_address = text.startswith(("http://", "https://")) and not re.search(r"\s", text)
    try:
        parts = urlsplit(text)
        is_address = is_address and bool(_HOST.fullmatch(parts.hostname or "")) and parts.port != 0 and "@" not in text
    except ValueError:  # such as a port of 99999
        is_address = False
    if not is_address:
        raise ValueError(f"{rule}, such as https://host:9000")
    if "?" in text or "#" in text:
        raise ValueError(f"{rule}, no ? and no #; leave out what follows")
    if not text.isascii() or {".", ".."} & set(parts.path.split("/")):
        raise ValueError(f"{rule}, and no ., .. or letters beyond ASCII in its path; write what the server is to read")
    return text


def shown(value: object, *, limit: int = 80) -> str:
    """What was received, for a message: without credentials, on one line, at most `limit` characters."""
    text = without_credentials(value if isinstance(value, str) else repr(value))
    return (repr(text) if isinstance(value, str) else text)[:limit]


def without_credentials(text: str) -> str:
    """A value that may be a URI, and nothing else: more is masked than in a text, where other words follow."""
    text = re.sub(r"//.*@", "//***@", text, flags=re.DOTALL)
    text = re.sub(r"^[^/:\s]*:[^/\s]*@", "***@", text)
    return masked(re.sub(r"(//[^?]*\?).*", r"\1***", text, flags=re.DOTALL))  # a signature may be a query


def _check_text(text: str) -> None:
    if not text:
        raise ValueError("must not be empty")
    if text != text.strip():
        raise ValueError("must not begin or end with a blank or line break")
    if not text.isprintable():
        raise ValueError("must hold no line break, control or invisible character")
    if re.match(r"(file:/*)?[A-Za-z]:[\\/]", text):
        raise ValueError("must not be a Windows path; name a folder of this machine, such as /mnt/c/data")
    if "\\" in text:
        raise ValueError(r"must hold no \; folders are separated by /")


def _path_of_file_uri(text: str) -> str:
    path = text.removeprefix("file:")
    if path.startswith("//"):
        path = path.removeprefix("//")
        if not path.startswith(("/", "./", "../")):
            raise ValueError("must be file:/absolute or file:./relative or file:~/below-home, with no host")
    if not path or path != path.strip():
        raise ValueError("must name a folder: file:/absolute or file:./relative")
    return path


def _expand_home(text: str) -> Path:
    if not text.startswith("~"):
        return Path(text)
    user = text.partition("/")[0].removeprefix("~")
    try:
        path = Path(text).expanduser()
    except RuntimeError as error:
        reason = f"there is no user {user}" if user else "the home folder of this user is not known"
        raise ValueError(f"must be an absolute path, as {reason}; or write ./{text}") from error
    if not path.is_absolute() or (not user and os.environ.get("HOME") == ""):
        raise ValueError("must be an absolute path, as HOME is none; set HOME")
    return path


def _check_bucket_uri(text: str) -> None:
    scheme, _, rest = text.partition(":")
    if scheme not in OBJECT_STORES:
        ours = _OTHER_NAMES.get(scheme.lower(), scheme.lower())
        hint = f"; here it is called {ours}:" if ours in (*OBJECT_STORES, "file") else ""
        raise ValueError(f"must start with {_KNOWN}, not with {scheme}:{hint}")
    bucket, _, prefix = rest.removeprefix("//").partition("/")
    if "@" in bucket or (":" in bucket and "@" in prefix):
        raise ValueError("must hold no credentials; they come from the environment")
    if not rest.startswith("//") or not _BUCKET.fullmatch(bucket):
        raise ValueError(
            f"must be {scheme}://BUCKET or {scheme}://BUCKET/PREFIX, with letters, digits, '-', '_' and '.' in the bucket's name"
        )
    odd = next((character for character in "?#%" if character in prefix), None)
    if odd:
        raise ValueError(f"must hold no {odd}, which others decode or cut off; write the prefix as it is in the bucket")
    names = prefix.removesuffix("/").split("/") if prefix else []
    if any(name in ("", ".", "..") for name in names):
        raise ValueError("must hold no empty name, . or .. in its prefix; write the prefix as it is in the bucket")

"""Whether there are credentials for a store, and whether they can be sent: said by name before the first request.

obstore reads them itself. Without any it would wait for a metadata server that is not there.
"""

import http.client
import queue
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from obstore.exceptions import BaseError, UnknownConfigurationKeyError
from obstore.store import from_url

from job import ambient, clock
from job.errors import AccessDeniedError

# Any one complete group is enough.
_CREDENTIALS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "s3": (
        ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN"),
        ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",),
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"),
        ("AWS_SKIP_SIGNATURE",),
    ),
    "gs": (
        ("GOOGLE_APPLICATION_CREDENTIALS",),
        ("GOOGLE_SERVICE_ACCOUNT",),
        ("GOOGLE_SERVICE_ACCOUNT_PATH",),
        ("GOOGLE_SERVICE_ACCOUNT_KEY",),
        ("GOOGLE_SKIP_SIGNATURE",),
    ),
    "az": (
        ("AZURE_STORAGE_ACCOUNT_KEY",),
        ("AZURE_STORAGE_ACCESS_KEY",),
        ("AZURE_STORAGE_SAS_TOKEN",),
        ("AZURE_CLIENT_ID", "AZURE_TENANT_ID", "AZURE_CLIENT_SECRET"),
        ("AZURE_CLIENT_ID", "AZURE_TENANT_ID", "AZURE_FEDERATED_TOKEN_FILE"),
        ("AZURE_STORAGE_USE_EMULATOR",),
    ),
}

_PREFIXES = {"s3": "AWS_", "gs": "GOOGLE_", "az": "AZURE_"}
"""Of the variables that obstore reads."""

_GCLOUD_FILE = Path(".config/gcloud/application_default_credentials.json")

_METADATA_SECONDS = 2.0
_METADATA_IP = "169.254.169.254"
"""Of Google's metadata server, which knows pods and virtual machines; where its name is none, finding that out may take long."""
_METADATA_PATH = "/computeMetadata/v1/instance/service-accounts/default/email"
_METADATA_HEADER, _METADATA_FLAVOR = "Metadata-Flavor", "Google"


def require_credentials(scheme: str, *, environ: Mapping[str, str]) -> None:
    """Refuse at once, instead of waiting for a metadata server that is not there.

    Raises:
        AccessDeniedError: names the variables of which one is missing.
    """
    groups = _CREDENTIALS[scheme]
    home = ambient.home_folder()
    if any(all(environ.get(name) for name in group) for group in groups):
        return
    if scheme == "gs" and home and (home / _GCLOUD_FILE).is_file():  # left by `gcloud auth application-default login`
        return
    hosts = _metadata_hosts(environ) if scheme == "gs" else []
    if not _has_identity(hosts):
        choices = ", or ".join(" and ".join(group) for group in groups)
        asked = f", and no service account from Google's metadata server ({', '.join(hosts)})" if hosts else ""
        if hosts and (environ.get("http_proxy") or environ.get("HTTP_PROXY")):
            asked += " by way of HTTP_PROXY, unless NO_PROXY names it"
        raise AccessDeniedError(f"store {scheme}://: no credentials found in the environment{asked}; set {choices}")


def _metadata_hosts(environ: Mapping[str, str]) -> list[str]:
    """Where obstore asks for a token, in its order; by number instead of Google's own name."""
    host = environ.get("GCE_METADATA_HOST") or environ.get("GCE_METADATA_ROOT")
    return list(dict.fromkeys([*([host] if host else []), environ.get("GCE_METADATA_IP") or _METADATA_IP]))


def _has_identity(hosts: list[str]) -> bool:
    """Whether one of them names a service account in time. Each has a thread of its own, as an answer may come in drips."""
    deadline = clock.monotonic() + _METADATA_SECONDS
    answers: queue.SimpleQueue[bool] = queue.SimpleQueue()
    for host in hosts:
        threading.Thread(target=lambda host=host: answers.put(_answers_in_time(host, deadline)), daemon=True).start()
    try:
        return any(answers.get(timeout=max(0.0, deadline - clock.monotonic())) for _ in hosts)
    except queue.Empty:
        return False


def _answers_in_time(host: str, deadline: float) -> bool:
    """Whether it names a service account; who refuses connections, as when a pod starts, is asked again."""
    while (left := deadline - clock.monotonic()) > 0:
        try:
            return _names_account(host, timeout=left)
        except ConnectionError:
            clock.sleep(0.1)
    return False


def _names_account(host: str, *, timeout: float) -> bool:
    """Whether a metadata server of Google's answers there, and knows who this pod or machine is.

    Raises:
        ConnectionError: it takes no connection, or breaks it off.
    """
    try:
        request = urllib.request.Request(f"http://{host}{_METADATA_PATH}", headers={_METADATA_HEADER: _METADATA_FLAVOR})
        with urllib.request.urlopen(request, timeout=timeout) as answer:  # noqa: S310 - http, as it is above
            return bool(answer.headers.get(_METADATA_HEADER) == _METADATA_FLAVOR)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code != http.HTTPStatus.NOT_FOUND and error.headers.get(_METADATA_HEADER) == _METADATA_FLAVOR
    except urllib.error.URLError as error:
        if isinstance(error.reason, ConnectionError):
            raise error.reason from error
    except (TimeoutError, http.client.HTTPException, ValueError):
        pass
    return False


def require_clean_values(scheme: str, *, environ: Mapping[str, str]) -> None:
    """Refuse what no HTTP header can carry: obstore panics at it, or signs with it and is refused."""
    for name, value in environ.items():
        is_json = scheme == "gs" and value.lstrip().startswith("{")
        is_odd = name.startswith(_PREFIXES[scheme]) and not is_json and not is_clean(value)
        if is_odd and _is_read(name, scheme=scheme):
            raise AccessDeniedError(
                f"store {scheme}://: {name} must be printable and without spaces or line breaks around it, received one of "
                f"{len(value)} characters that is not; make the Secret again, with printf %s instead of echo"
            )


def _is_read(name: str, *, scheme: str) -> bool:
    """Whether obstore reads a variable: others with such a name, such as GOOGLE_PRIVATE_KEY, may hold anything."""
    try:
        from_url(f"{scheme}://bucket", config=cast("Any", {name: ""}))
    except UnknownConfigurationKeyError:
        return False
    except (BaseError, ValueError):
        return True
    return True


def culprit(cause: str, *, scheme: str, environ: Mapping[str, str]) -> str:
    """The variable whose value obstore's complaint quotes, else `store.uri`."""
    found = (name for name, value in environ.items() if name.upper().startswith(_PREFIXES[scheme]) and value)
    return next((name for name in found if re.search(rf"(?<!\w){re.escape(environ[name])}(?!\w)", cause)), "store.uri")


def is_clean(value: str) -> bool:
    """Whether it has no line break or other control character, no byte that is no UTF-8, and no space around it."""
    return value.isprintable() and value == value.strip()

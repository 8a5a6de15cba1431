"""Which cluster and namespace: kubeconfig, context and namespace as kubectl finds them, or the ServiceAccount of the pod.

The only module that imports `kubernetes`, and only inside functions: it takes a second.
"""

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from job.masking import remember, remember_passwords_of, remember_variable
from job.texts import one_line
from k8s.errors import UsageError

SERVICE_ACCOUNT_DIR = Path("/var/run/secrets/kubernetes.io/serviceaccount")
DEFAULT_KUBECONFIG = "~/.kube/config"
_SECRET_FIELDS = ("token", "password", "client-key-data", "tokenFile")
_key_folders: list[str] = []
"""Folders with the keys that a kubeconfig holds: Python's TLS takes them from files only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """A way to the API server, and the namespace to work in."""

    client: Any
    """A `kubernetes.client.ApiClient`."""
    namespace: str


def connect(*, kubeconfig: str = "", context: str = "", namespace: str = "") -> Connection:
    """Read the configuration; nothing is sent yet.

    Args:
        kubeconfig: one file, or several as in KUBECONFIG; else KUBECONFIG, ~/.kube/config, and then the pod's ServiceAccount.

    Raises:
        UsageError: there is none, it cannot be read, or it has no such context.
    """
    try:
        from kubernetes.client import ApiClient, Configuration
        from urllib3.exceptions import HTTPError
    except ModuleNotFoundError as error:
        raise UsageError(f"the package {error.name} is missing; install mnist-train[client]") from error

    configuration = Configuration()
    configuration.retries = False  # `api.py` knows which requests may be sent twice
    paths = kubeconfig or os.environ.get("KUBECONFIG", "") or DEFAULT_KUBECONFIG
    # Path.expanduser fails without a home folder.
    files = [os.path.expanduser(path) for path in paths.split(os.pathsep)]  # noqa: PTH111
    is_there = any(map(os.path.isfile, files))
    if (kubeconfig or context) and not any(map(os.path.exists, files)):
        raise UsageError(f"kubeconfig {paths}: there is no such file; give --kubeconfig FILE, or set KUBECONFIG")
    if is_there or kubeconfig or context:
        from_context = _load_kubeconfig(configuration, paths, context=context)
    else:
        from_context = _load_service_account(configuration, looked_at=paths)
    _guard_token(configuration, paths)
    try:
        client = ApiClient(configuration)
    except (HTTPError, ValueError) as error:  # such as a proxy of another scheme
        raise UsageError(
            f"kubeconfig {paths}: {one_line(error)}; correct its server or proxy-url, or HTTPS_PROXY"
        ) from error
    return Connection(client=client, namespace=namespace or from_context or "default")


def _load_kubeconfig(configuration: Any, paths: str, *, context: str) -> str:
    """Returns the namespace of the context."""
    import yaml
    from kubernetes.config import ConfigException
    from kubernetes.config.kube_config import KubeConfigLoader, KubeConfigMerger

    try:
        content = KubeConfigMerger(paths).config
        _remember_secrets(content)
        # `list_kube_config_contexts` needs a current-context, although `context` says which.
        loader = KubeConfigLoader(
            content, active_context=context or None, config_base_path=None, temp_file_path=_new_key_folder()
        )
        with _quiet():
            loader.load_and_set(configuration)
        chosen = loader.current_context
    except yaml.YAMLError as error:
        raise UsageError(f"kubeconfig {paths}: is no YAML{_place_of(error)}; correct it there") from error
    except (ConfigException, OSError, KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"kubeconfig {paths}: {one_line(error)}; give --kubeconfig and --context, or set KUBECONFIG"
        ) from error
    _check_plugin(configuration, content, user=(chosen.get("context") or {}).get("user"))
    return str((chosen.get("context") or {}).get("namespace") or "")


def _place_of(error: Any) -> str:
    """Without its words, which quote a part of the line: that may be a part of a password."""
    mark = getattr(error, "problem_mark", None)
    return f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""


def _remember_secrets(content: Any) -> None:
    """Mask what a kubeconfig holds of its users and in addresses, before anything is said about it.

    Of the variables of a credential plugin those are masked whose names say that they are secret: AWS_PROFILE is none.
    """
    for cluster in _entries(content, "cluster"):
        remember_passwords_of(*(str(cluster.get(name)) for name in ("server", "proxy-url")))
    for user in _entries(content, "user"):
        provider = (user.get("auth-provider") or {}).get("config") or {}
        fields = [(name, user.get(name)) for name in _SECRET_FIELDS] + list(provider.items())
        fields += [
            (variable.get("name"), variable.get("value")) for variable in (user.get("exec") or {}).get("env") or ()
        ]
        for name, value in fields:
            remember_variable(str(name), str(value or ""))


def _entries(content: Any, kind: str, *, name: str | None = None) -> Iterator[dict[str, Any]]:
    """The users or clusters of a merged kubeconfig, or that of one name, as plain mappings."""
    for node in content.safe_get(f"{kind}s") or () if content is not None else ():
        entry = getattr(node, "value", node)
        if isinstance(entry, dict) and isinstance(entry.get(kind), dict) and name in (None, entry.get("name")):
            yield entry[kind]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the library logs of a credential plugin that fails: its stderr, in which a token may be."""
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _check_plugin(configuration: Any, content: Any, *, user: str | None) -> None:
    """Raises:
    UsageError: a credential plugin is configured, and has given nothing; the library would go on without credentials.
    """
    plugin = next((found["exec"] for found in _entries(content, "user", name=user) if found.get("exec")), None)
    if plugin and not configuration.api_key.get("BearerToken") and not configuration.cert_file:
        raise UsageError(
            f"kubeconfig: the credential plugin {plugin.get('command')} has given no credentials; run it by itself: it says why"
        )


def _guard_token(configuration: Any, paths: str) -> None:
    """Clean the token now, and whenever the library reads it again: before each request, as some last for minutes only."""
    read_again = configuration.refresh_api_key_hook

    def refresh(refreshed: Any) -> None:
        if read_again:
            read_again(refreshed)
        _clean_token(refreshed, paths)

    configuration.refresh_api_key_hook = refresh
    _clean_token(configuration, paths)


def _clean_token(configuration: Any, paths: str) -> None:
    """Drop blanks and line breaks around the token, as kubectl does with the file of a token, and mask it from now on.

    Raises:
        UsageError: it holds a line break or another character that no header can hold.
    """
    header = configuration.api_key.get("BearerToken", "")
    kind, _, token = header.partition(" ")
    token = token.strip()
    remember(token)
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise UsageError(
            f"kubeconfig {paths}: the token must be one line of printable ASCII characters, received one of {len(token)} that is "
            "not; log in again, or write it with printf %s instead of echo"
        )
    if token:
        configuration.api_key["BearerToken"] = f"{kind} {token}"


def _new_key_folder() -> str:
    _key_folders.append(tempfile.mkdtemp(prefix="mnist-k8s-"))
    return _key_folders[-1]


def remove_keys() -> None:
    """Remove the files that `connect` made of the keys in a kubeconfig: call it last of all, as no connection opens after it."""
    while _key_folders:
        shutil.rmtree(_key_folders.pop(), ignore_errors=True)


def _load_service_account(configuration: Any, *, looked_at: str) -> str:
    """Returns the namespace of the pod."""
    from kubernetes.config import ConfigException, load_incluster_config

    try:
        load_incluster_config(client_configuration=configuration)
    except ConfigException as error:
        raise UsageError(
            f"no cluster is configured: there is no {looked_at}, and this is no pod with a ServiceAccount token; "
            "give --kubeconfig FILE, or set KUBECONFIG"
        ) from error
    file = SERVICE_ACCOUNT_DIR / "namespace"
    return file.read_text(encoding="utf-8").strip() if file.is_file() else ""

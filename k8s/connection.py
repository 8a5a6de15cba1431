"""Which cluster and namespace: kubeconfig, context and namespace as kubectl finds them, or the ServiceAccount of the pod.

The only module that imports `kubernetes`, and only inside functions: it takes a second.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from job.texts import one_line
from k8s.errors import UsageError

SERVICE_ACCOUNT_DIR = Path("/var/run/secrets/kubernetes.io/serviceaccount")
DEFAULT_KUBECONFIG = "~/.kube/config"


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
    return Connection(client=ApiClient(configuration), namespace=namespace or from_context or "default")


def _load_kubeconfig(configuration: Any, paths: str, *, context: str) -> str:
    """Returns the namespace of the context."""
    import yaml
    from kubernetes.config import ConfigException
    from kubernetes.config.kube_config import KubeConfigLoader, KubeConfigMerger

    try:
        # `list_kube_config_contexts` needs a current-context, although `context` says which.
        loader = KubeConfigLoader(KubeConfigMerger(paths).config, active_context=context or None, config_base_path=None)
        loader.load_and_set(configuration)
        chosen = loader.current_context
    except (ConfigException, OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"kubeconfig {paths}: {one_line(error)}; give --kubeconfig and --context, or set KUBECONFIG"
        ) from error
    return str((chosen.get("context") or {}).get("namespace") or "")


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

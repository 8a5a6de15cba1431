"""The Kubernetes client: never imports TensorFlow, nor any module of `job` but those of its contract and its settings."""

from k8s.client import RunClient
from k8s.errors import ClientError
from k8s.status import RunStatus

__all__ = ["ClientError", "RunClient", "RunStatus"]

"""A client and the small API server that it talks to."""

from collections.abc import Iterator

import pytest

from k8s import RunClient
from k8s.api import Api
from tests.k8s.objects import template
from tests.k8s.server import ApiServer, connection_to, serve


@pytest.fixture
def cluster() -> ApiServer:
    state = ApiServer()
    state.add("cronjobs", template())
    return state


@pytest.fixture
def client(cluster: ApiServer) -> Iterator[RunClient]:
    server, url = serve(cluster)
    yield RunClient(Api(connection_to(url, namespace="ml"), patience_seconds=5.0, first_patience_seconds=2.0))
    server.shutdown()
    server.server_close()

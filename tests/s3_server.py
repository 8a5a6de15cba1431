"""moto's S3 server: a real HTTP API that honours conditional writes, for tests and campaigns."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any
from unittest import mock


@contextlib.contextmanager
def serve_s3() -> Iterator[str]:
    """The server's URL, while the block lasts."""
    from moto.s3.responses import S3Response
    from moto.server import ThreadedMotoServer

    put_object, lock = S3Response.put_object, threading.Lock()

    def put_one_at_a_time(response: Any) -> Any:  # moto looks for the key and then writes it; S3 does both in one step
        with lock:
            return put_object(response)

    with mock.patch.object(S3Response, "put_object", put_one_at_a_time):
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
        server.stop()

"""An address and an application -> requests served, until a signal; then those that are there."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import uvicorn

from qcompiler.runtime.executor import Executor
from qcompiler.runtime.serve.app import Application
from qcompiler.runtime.sockets import listening

_KEEP_ALIVE_SECONDS = 30


def serve(
    executors: Mapping[str, Executor],
    address: tuple[str, int],
    *,
    body_bytes: int,
    connections: int,
    drain_seconds: int,
    ready: Callable[[str], None],
) -> None:
    """Serve until SIGINT or SIGTERM, which is raised again after the requests that were begun have
    been answered, or so many seconds have passed. `ready` is told the URL.
    """
    listener = listening(address, backlog=1024)
    application = Application(executors, body_bytes=body_bytes)
    config = uvicorn.Config(
        application.asgi,
        limit_concurrency=connections + 1,  # uvicorn refuses when as many are there
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=drain_seconds,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="off",
    )
    server = uvicorn.Server(config)
    application.draining = lambda: bool(server.should_exit)
    host, port = listener.getsockname()[:2]
    ready(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")
    with listener:
        server.run(sockets=[listener])

"""A reverse proxy that serves one server under a path of its own, as an ingress does."""

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx

_HOP_BY_HOP = {"connection", "transfer-encoding", "content-length", "host", "keep-alive"}


@contextlib.contextmanager
def proxying(upstream: str, prefix: str) -> Iterator[str]:
    """URL of the page behind it; what is not below ``prefix`` is a 404."""

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            if not self.path.startswith(prefix):
                self.send_error(404)
                return
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
            url = upstream + "/" + self.path.removeprefix(prefix)
            with httpx.stream(self.command, url, headers=headers, content=body, timeout=60) as reply:
                self.send_response(reply.status_code)
                for name, value in reply.headers.items():
                    if name not in _HOP_BY_HOP:
                        self.send_header(name, value)
                self.end_headers()
                with contextlib.suppress(OSError):  # the browser has left
                    for piece in reply.iter_raw():
                        self.wfile.write(piece)
                        self.wfile.flush()

        do_GET = do_POST = handle_any

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}{prefix}"
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()

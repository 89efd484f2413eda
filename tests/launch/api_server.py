"""A server on this machine that answers a scheduler's requests from a table, and keeps them."""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class ApiServer:
    """A with statement; `requests` has (method, path, content) in their order.

    Args:
        answers: by "METHOD path", a pattern of the whole path: (status, content[, headers]), or a
            function of the request's content that returns them. The path of a HEAD is followed by
            the authorization, if there is one. What fits none gets 404.
    """

    def __init__(self, answers):
        self.requests = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self):
                content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                content = json.loads(content) if content else None
                path = self.path.partition("?")[0]
                server.requests.append((self.command, path, content))
                request = f"{self.command} {self.path}"
                if self.command == "HEAD" and "Authorization" in self.headers:
                    request += f" {self.headers['Authorization']}"
                status, answer, *headers = server.find(answers, request, content)
                body = b"" if answer is None else json.dumps(answer).encode() + b"\n"
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                for name, value in dict(*headers).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_GET = do_HEAD = do_POST = do_DELETE = answer  # noqa: N815

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self._server.server_address[1]}"

    @staticmethod
    def find(answers, request, content):
        for pattern, answer in answers.items():
            if re.fullmatch(pattern, request):
                return answer(content) if callable(answer) else answer
        return 404, {"message": "not found", "reason": "NotFound", "code": 404}

    def of(self, method, path):
        """Return the contents of the requests for a path."""
        return [content for one, where, content in self.requests if (one, where) == (method, path)]

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

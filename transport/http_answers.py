"""HTTP/1.1 as peers of an alliance speak it to each other: one request, and one answer that states its length.

The answer is read by llhttp (httptools), which costs a hundredth of what the standard library's mail parser does, and
every hop of a check reads one.
"""

import re
from collections.abc import Mapping

import httptools

MAX_ANSWER = 16 << 20
_MAX_HEAD = 32 << 10
_SUCCESS = 200
NOT_MODIFIED = 304
_LENGTH = re.compile(r"[0-9]{1,9}")


class BadAnswerError(Exception):
    """A peer's answer is no HTTP that peers of an alliance speak."""


def request_bytes(method: str, host: str, path: str, headers: Mapping[str, str], body: bytes) -> bytes:
    """Return a request. Refuses (`ValueError`) what would end a line of its head."""
    host = f"[{host}]" if ":" in host else host
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    head = "\r\n".join([*lines, "\r\n"])
    if not head.count("\r") == head.count("\n") == len(lines) + 1:
        raise ValueError("a line of a request has a line's end in it")
    return head.encode("latin-1") + body


class HttpAnswer:
    """An answer of so many bytes at most, `whole` when all has been taken: `status`, `headers` by their names in small
    letters, `body`, and whether the connection `stays`.
    """

    def __init__(self, most: int = MAX_ANSWER) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.stays = False
        self._parts: list[bytes] = []
        self._head_bytes = 0
        self.whole = False
        self._most = most
        self._parser = httptools.HttpResponseParser(self)

    @property
    def body(self) -> bytes:
        """The whole body."""
        return b"".join(self._parts)

    def take(self, data: memoryview) -> None:
        """Take what has been read next.

        Raises `BadAnswerError` for an answer that is longer than it may be, or does not state its length.
        """
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            raise BadAnswerError(type(error).__name__) from None
        if not self.status:
            self._head_bytes += len(data)
            if self._head_bytes > _MAX_HEAD:
                raise BadAnswerError("the head is too long")

    # --- what the parser tells

    def on_message_begin(self) -> None:
        """Take note of an answer's beginning; there is no second one."""
        if self.whole:
            raise BadAnswerError("more than one answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header."""
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """Judge the head."""
        status = self._parser.get_status_code()
        length = self.headers.get("content-length", "0" if status == NOT_MODIFIED else "")  # which has no body
        if not _LENGTH.fullmatch(length) or int(length) > self._most:
            raise BadAnswerError("the answer does not state a length that can be")
        self.status = status
        self.stays = self._parser.should_keep_alive() and self.status >= _SUCCESS

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        self._parts.append(body)

    def on_message_complete(self) -> None:
        """Take note of the end."""
        self.whole = True

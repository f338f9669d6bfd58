"""A road into the server that keeps every byte that came over it: what the nodes send, whole and in order."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from dataclasses import dataclass, field


@dataclass
class Recorder:
    """Forwards connections on `port` to the server's port, and keeps what clients sent, by connection."""

    server_port: int
    sent: list[bytearray] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def forget(self) -> None:
        """Keep what comes from now on. Call it while nobody sends anything but signs of life."""
        for sent in self.sent:
            sent.clear()

    @property
    def everything(self) -> bytes:
        return b"".join(bytes(sent) for sent in self.sent)

    def uploads(self) -> list[bytes]:
        """The bodies of all blobs that were sent."""
        head = re.compile(rb"PUT /node/v1/blobs/[0-9a-f]{64} HTTP/1\.1\r\n(.*?)\r\n\r\n", re.DOTALL)
        found = []
        for sent in map(bytes, self.sent):
            for match in head.finditer(sent):
                length = re.search(rb"(?i)content-length: (\d+)", match.group(1))
                assert length
                found.append(sent[match.end() : match.end() + int(length.group(1))])
        return found

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed
                return
            kept = bytearray()
            self.sent.append(kept)
            threading.Thread(target=self._serve, args=(client, kept), daemon=True).start()

    def _serve(self, client: socket.socket, kept: bytearray) -> None:
        with client:
            try:
                server = socket.create_connection(("127.0.0.1", self.server_port))
            except OSError:  # the server is away: so says the end of this connection
                return
            with server:
                back = threading.Thread(target=_forward, args=(server, client, None), daemon=True)
                back.start()
                _forward(client, server, kept)
                back.join()


def _forward(source: socket.socket, target: socket.socket, kept: bytearray | None) -> None:
    """Pass on what comes until either end is gone, and end both then."""
    try:
        while data := source.recv(1 << 16):
            if kept is not None:
                kept += data
            target.sendall(data)
    except OSError:
        pass
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)

"""Messages between a pool and one of its workers over a socket: the length of each (4 bytes), then its bytes.

The pool's end never blocks, or two processes that write to each other would wait for ever; a worker's end does.
"""

import contextlib
import selectors
import socket
import struct
import weakref

LENGTH = struct.Struct("<I")
CHUNK_BYTES = 1 << 16

# All pools' ends in this process. A forked worker closes its copies, or nobody would notice that a pool has died.
_pool_ends: "weakref.WeakSet[socket.socket]" = weakref.WeakSet()


class PoolEnd:
    """Sends and receives without waiting; `selector` knows it by `owner` and wakes for what it waits for."""

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self._socket, self.worker_end = socket.socketpair()
        self._socket.setblocking(False)
        _pool_ends.add(self._socket)
        self._selector = selector
        self._inbox, self._outbox = bytearray(), bytearray()

    def watch(self, owner: object) -> None:
        """From here on the selector reports `owner` when there is something to read."""
        self.worker_end.close()  # the worker has its own copy now
        self._selector.register(self._socket, selectors.EVENT_READ, owner)

    def queue(self, message: bytes) -> None:
        """Has a message go out at the next `flush`."""
        self._outbox += LENGTH.pack(len(message)) + message

    def flush(self) -> None:
        """Writes what is queued, as far as the other side has room.

        Where that is gone the queue is forgotten, and `receive` finds it out.
        """
        try:
            while self._outbox:
                del self._outbox[: self._socket.send(self._outbox)]
        except BlockingIOError:
            pass  # the selector says when there is room again
        except OSError:
            self._outbox.clear()
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._outbox else 0)
        key = self._selector.get_key(self._socket)
        if key.events != wanted:
            self._selector.modify(self._socket, wanted, key.data)

    def receive(self) -> tuple[list[bytes], bool]:
        """The messages that have come whole, and whether the other side is gone."""
        is_over = False
        while True:
            try:
                data = self._socket.recv(CHUNK_BYTES)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            self._inbox += data
            if len(data) < CHUNK_BYTES:
                is_over = not data
                break
        return self._whole_messages(), is_over

    def close(self) -> None:
        """Frees both ends."""
        with contextlib.suppress(KeyError):  # never watched
            self._selector.unregister(self._socket)
        self._socket.close()
        self.worker_end.close()

    def _whole_messages(self) -> list[bytes]:
        messages, start = [], 0
        while len(self._inbox) - start >= LENGTH.size:
            (length,) = LENGTH.unpack_from(self._inbox, start)
            end = start + LENGTH.size + length
            if len(self._inbox) < end:
                break
            messages.append(bytes(self._inbox[start + LENGTH.size : end]))
            start = end
        del self._inbox[:start]
        return messages


def send(link: socket.socket, message: bytes) -> None:
    """Sends from a worker; waits for room. Raises OSError where the pool is gone."""
    link.sendall(LENGTH.pack(len(message)) + message)


def receive(link: socket.socket) -> bytes | None:
    """The next message to a worker, waiting for it; None where the pool is gone."""
    head = _read(link, LENGTH.size)
    return None if head is None else _read(link, LENGTH.unpack(head)[0])


def close_inherited() -> None:
    """Closes the pools' ends that a forked process has copies of."""
    for end in list(_pool_ends):
        end.close()


def _read(link: socket.socket, num_bytes: int) -> bytes | None:
    data = bytearray()
    while len(data) < num_bytes:
        try:
            chunk = link.recv(num_bytes - len(data))
        except OSError:
            return None
        if not chunk:
            return None
        data += chunk
    return bytes(data)

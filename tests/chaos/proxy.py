"""A TCP proxy that cuts what goes through it, or lets nobody through for a while."""

import asyncio
import contextlib
import threading


class Proxy:
    """Forwards connections to a port of the loopback, in a thread of its own.

    Args:
        target: The port.

    Attributes:
        port: To connect to instead.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._is_open = True
        self._ends: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True).start()
        listening = asyncio.run_coroutine_threadsafe(asyncio.start_server(self._serve, "127.0.0.1", 0), self._loop)
        self.port: int = listening.result().sockets[0].getsockname()[1]

    def cut(self) -> bool:
        """Break every connection, whatever is under way on it; whether there was one."""

        async def abort() -> bool:
            for end in self._ends:
                end.transport.abort()
            return bool(self._ends)

        return asyncio.run_coroutine_threadsafe(abort(), self._loop).result()

    def refuse(self, refusing: bool) -> None:
        """Let nobody through, or again everybody; connections that stand are left."""
        self._is_open = not refusing

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if not self._is_open:
                raise ConnectionRefusedError
            other_reader, other_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        ends = {writer, other_writer}
        self._ends |= ends
        await asyncio.gather(_pump(reader, other_writer), _pump(other_reader, writer))
        self._ends -= ends


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()

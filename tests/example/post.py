"""A post office: a real SMTP server, which refuses and holds deliveries when it is told to."""

from __future__ import annotations

import asyncio
import email
import threading
import time
from email.message import Message
from typing import Self

from aiosmtpd.smtp import SMTP, Envelope, Session


class PostOffice:
    """Listens on `port` of 127.0.0.1 in a thread of its own, while its block lasts.

    `mails`    what was accepted, in that order; `tried_at` is when any delivery to an address was tried
    `refusals` so many deliveries to others than the staff are refused for now (451), as a busy server does
    `open`     while it is not set, deliveries to others than the staff are kept waiting
    """

    def __init__(self) -> None:
        self.port = 0
        self.mails: list[Message] = []
        self.tried_at: dict[str, list[float]] = {}
        self.refusals = 0
        self.open = threading.Event()
        self.open.set()
        self.is_asked = threading.Event()
        self._is_ready = threading.Event()
        self._arrived = threading.Condition()
        self._closing: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def to(self, address: str) -> list[Message]:
        return [mail for mail in self.mails if mail["To"] == address]

    def wait_for(self, address: str, count: int = 1) -> list[Message]:
        """The mails to an address, once there are so many."""
        with self._arrived:
            arrived = self._arrived.wait_for(lambda: len(self.to(address)) >= count, timeout=60)
        assert arrived, f"{len(self.to(address))} of {count} mails to {address} have come"
        return self.to(address)

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802  # aiosmtpd's name
        assert isinstance(envelope.content, bytes)
        mail = email.message_from_bytes(envelope.content)
        to = str(mail["To"])
        self.tried_at.setdefault(to, []).append(time.monotonic())
        if to != "staff@example.com":
            self.is_asked.set()
            await asyncio.to_thread(self.open.wait, 60)
            if self.refusals:
                self.refusals -= 1
                return "451 too busy, try again later"
        with self._arrived:
            self.mails.append(mail)
            self._arrived.notify_all()
        return "250 accepted"

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._is_ready.wait(60)
        return self

    def __exit__(self, *error: object) -> None:
        self.open.set()
        assert self._loop is not None
        assert self._closing is not None
        self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join(60)

    async def _serve(self) -> None:
        self._loop, self._closing = asyncio.get_running_loop(), asyncio.Event()
        server = await self._loop.create_server(lambda: SMTP(self, loop=self._loop), "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._is_ready.set()
        await self._closing.wait()
        server.close()

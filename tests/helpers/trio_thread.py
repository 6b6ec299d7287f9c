"""A trio run in a thread of its own, for tests that cannot be asynchronous: state machines of hypothesis."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import TypeVar

import trio

T = TypeVar("T")


class TrioThread:
    """`run` calls a coroutine function there and waits; contexts that were entered stay open until `close`."""

    def __init__(self) -> None:
        self._ready = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._main,), daemon=True)
        self._thread.start()
        self._ready.wait()

    def run(self, call: Callable[[], Awaitable[T]]) -> T:
        return trio.from_thread.run(call, trio_token=self._token)

    def enter(self, context: AbstractAsyncContextManager[T]) -> T:
        """Enter an asynchronous context in the main task, where it will be left as well."""
        done = threading.Event()
        outcome: list[T | BaseException] = []

        async def enter() -> None:
            try:
                outcome.append(await self._stack.enter_async_context(context))
            except Exception as exc:
                outcome.append(exc)
            done.set()

        self._token.run_sync_soon(self._send.send_nowait, enter)
        done.wait()
        if isinstance(outcome[0], BaseException):
            raise outcome[0]
        return outcome[0]

    def leave(self) -> None:
        """Leave all contexts that were entered so far."""

        async def leave() -> None:
            await self._stack.aclose()
            done.set()

        done = threading.Event()
        self._token.run_sync_soon(self._send.send_nowait, leave)
        done.wait()

    def close(self) -> None:
        self._token.run_sync_soon(self._send.close)
        self._thread.join()

    async def _main(self) -> None:
        self._send, receive = trio.open_memory_channel[Callable[[], Awaitable[None]]](10)
        self._token = trio.lowlevel.current_trio_token()
        async with AsyncExitStack() as self._stack:
            self._ready.set()
            async for call in receive:
                await call()

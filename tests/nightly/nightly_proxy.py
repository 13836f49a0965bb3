"""What the proxy is told to do to a command is what befalls it, on a real server."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.nightly.until import until
from tests.support.proxy import (
    BLACKHOLE,
    DROP_COMMAND,
    DROP_REPLY,
    GARBLE,
    PASS,
    Command,
    Fate,
    Proxy,
    Request,
    Resp,
    Rule,
    Share,
    delay,
    delay_reply,
)
from tests.support.servers import HOST, RedisServer, shared_redis

SHORT = 0.15
"""Seconds after which a client here gives up."""


@pytest.fixture
def server() -> RedisServer:
    with shared_redis().client() as client:
        client.flushall()
    return shared_redis()


@pytest.fixture
def proxy(server: RedisServer) -> Iterator[Proxy]:
    with Proxy(HOST, server.port) as proxy:
        yield proxy


@pytest.fixture
def connect(proxy: Proxy) -> Iterator[Callable[..., redis.Redis]]:
    """Makes clients of the proxy that try nothing twice, and closes them."""
    with ExitStack() as stack:

        def connect(**options: Any) -> redis.Redis:
            options = {"socket_timeout": 5, "retry": Retry(NoBackoff(), 0), **options}
            client: redis.Redis = stack.enter_context(redis.Redis.from_url(proxy.url(), **options))
            return client

        yield connect


@pytest.fixture
def client(connect: Callable[..., redis.Redis]) -> redis.Redis:
    return connect()


@pytest.fixture
def wire(proxy: Proxy) -> Iterator[Wire]:
    with Wire(proxy.port) as wire:
        yield wire


class Wire:
    """A bare connection, for what no client would send."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection((HOST, port), timeout=5)

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *error: object) -> None:
        self._socket.close()

    def send(self, *commands: bytes) -> None:
        """Each given as it is typed; all in one packet."""
        self.send_raw(b"".join(packed(command) for command in commands))

    def send_raw(self, data: bytes) -> None:
        self._socket.sendall(data)

    def said(self, expected: bytes) -> bool:
        """Whether this comes next."""
        got = b""
        while len(got) < len(expected) and (data := self._socket.recv(len(expected) - len(got))):
            got += data
        return got == expected

    def rest(self) -> bytes:
        """All that comes before the end."""
        got = b""
        while data := self._socket.recv(65_536):
            got += data
        return got

    def is_cut(self) -> bool:
        """Whether the end comes next."""
        try:
            return self._socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def is_silent(self) -> bool:
        """Whether nothing comes, not even the end."""
        self._socket.settimeout(SHORT)
        try:
            self._socket.recv(1)
        except TimeoutError:
            return True
        finally:
            self._socket.settimeout(5)
        return False


def packed(command: bytes) -> bytes:
    words = command.split()
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


def to(name: bytes, fate: Fate) -> Rule:
    """That fate for all commands of a name."""
    return lambda command: fate if command.name == name else PASS


def listening(client: redis.Redis) -> Any:
    """A subscriber, which redis-py types only in part."""
    return client.pubsub()  # type: ignore[no-untyped-call]


def received(listener: Any) -> Any:
    message = listener.get_message(timeout=5)
    assert message is not None
    return message


def directly(server: RedisServer, key: str) -> object:
    with server.client() as client:
        return client.get(key)


def test_by_default_all_passes_and_is_counted(proxy: Proxy, client: redis.Redis) -> None:
    client.set("a", "1")
    assert client.get("a") == b"1"
    assert (proxy.counts[b"SET", PASS], proxy.counts[b"GET", PASS], proxy.counts[b"GET", DROP_REPLY]) == (1, 1, 0)


def test_a_rule_sees_each_command_and_its_number(proxy: Proxy, wire: Wire, connect: Callable[..., redis.Redis]) -> None:
    seen: list[Command] = []

    def rule(command: Command) -> Fate:
        seen.append(command)
        return PASS

    proxy.rule = rule
    wire.send(b"set a 1", b"GET a")
    assert wire.said(b"+OK\r\n$1\r\n1\r\n")
    assert seen == [Command(b"SET", (b"a", b"1"), 1), Command(b"GET", (b"a",), 2)]


def test_a_command_whose_reply_is_dropped_has_taken_effect(proxy: Proxy, client: redis.Redis, server: RedisServer) -> None:
    proxy.rule = to(b"INCRBY", DROP_REPLY)
    with pytest.raises(redis.ConnectionError):
        client.incr("a")
    assert directly(server, "a") == b"1"
    assert proxy.counts[b"INCRBY", DROP_REPLY] == 1
    assert client.get("a") == b"1"


def test_a_dropped_command_has_not_taken_effect(proxy: Proxy, client: redis.Redis, server: RedisServer) -> None:
    proxy.rule = to(b"INCRBY", DROP_COMMAND)
    with pytest.raises(redis.ConnectionError):
        client.incr("a")
    assert directly(server, "a") is None
    assert client.ping()


def test_a_delayed_command_takes_effect_late_even_when_its_client_has_left(
    proxy: Proxy, connect: Callable[..., redis.Redis], server: RedisServer
) -> None:
    proxy.rule = to(b"RPUSH", delay(0.2))
    with server.client() as other:
        began = time.monotonic()
        with connect(socket_timeout=0.05) as client, pytest.raises(redis.TimeoutError):
            client.rpush("a", "1")
        assert other.llen("a") == 0
        assert list(other.blpop(["a"], timeout=5) or ()) == [b"a", b"1"]
        assert time.monotonic() - began >= 0.2


def test_a_delayed_reply_is_of_a_command_that_took_effect_at_once(proxy: Proxy, client: redis.Redis, server: RedisServer) -> None:
    proxy.rule = to(b"RPUSH", delay_reply(0.2))
    answered_at: list[float] = []

    def push() -> None:
        client.rpush("a", "1")
        answered_at.append(time.monotonic())

    thread = threading.Thread(target=push)
    thread.start()
    with server.client() as other:
        assert other.blpop(["a"], timeout=5)
    effective_at = time.monotonic()
    thread.join()
    assert answered_at[0] - effective_at > 0.1


def test_a_garbled_reply_is_of_a_command_that_took_effect(proxy: Proxy, client: redis.Redis, server: RedisServer) -> None:
    proxy.rule = to(b"INCRBY", GARBLE)
    with pytest.raises(redis.InvalidResponse):
        client.incr("a")
    assert directly(server, "a") == b"1"


def test_only_the_reply_in_question_is_garbled(proxy: Proxy, wire: Wire) -> None:
    proxy.rule = to(b"INCR", GARBLE)
    wire.send(b"SET a 1", b"INCR a", b"GET a")
    assert wire.said(b"+OK\r\n?2\r\n$1\r\n2\r\n")


def test_a_command_in_a_black_hole_has_no_effect_and_no_answer(proxy: Proxy, wire: Wire, server: RedisServer) -> None:
    proxy.rule = to(b"INCR", BLACKHOLE)
    wire.send(b"SET b 1", b"INCR a", b"SET c 1")
    assert wire.said(b"+OK\r\n")
    wire.send(b"SET d 1")
    assert wire.is_silent()
    assert [directly(server, key) for key in "abcd"] == [None, b"1", None, None]
    with Wire(proxy.port) as other:
        other.send(b"GET b")
        assert other.said(b"$1\r\n1\r\n")


@pytest.mark.parametrize(("fate", "effect"), [(DROP_REPLY, b"1"), (DROP_COMMAND, None)])
def test_of_several_in_one_packet_those_before_are_answered_and_those_behind_are_lost(
    proxy: Proxy, wire: Wire, server: RedisServer, fate: Fate, effect: bytes | None
) -> None:
    proxy.rule = to(b"INCR", fate)
    wire.send(b"SET before 1", b"PING", b"INCR a", b"SET behind 1")
    assert wire.said(b"+OK\r\n+PONG\r\n")
    assert wire.is_cut()
    assert [directly(server, key) for key in ("before", "a", "behind")] == [b"1", effect, None]


def test_a_command_that_comes_in_pieces_is_one_command(proxy: Proxy, wire: Wire) -> None:
    for byte in packed(b"SET a 1"):
        wire.send_raw(bytes([byte]))
    assert wire.said(b"+OK\r\n")
    assert proxy.counts == {(b"SET", PASS): 1}


def test_a_command_as_typed_is_a_command(proxy: Proxy, wire: Wire) -> None:
    wire.send_raw(b"set a 1\r\n")
    assert wire.said(b"+OK\r\n")
    assert proxy.counts == {(b"SET", PASS): 1}


def test_a_large_value_passes_both_ways(client: redis.Redis) -> None:
    value = b"\r\n$1*" * 400_000
    client.set("a", value)
    assert client.get("a") == value


@pytest.mark.parametrize("protocol", [2, 3])
def test_a_dropped_reply_is_dropped_whole_however_it_is_nested(
    proxy: Proxy, connect: Callable[..., redis.Redis], server: RedisServer, protocol: int
) -> None:
    client = connect(protocol=protocol)
    script = "redis.call('incr', 'a') return {1, {2, {'x', false}}, {}, 'y'}"
    assert client.eval(script, 0) == [1, [2, [b"x", None]], [], b"y"]
    proxy.rule = to(b"EVAL", DROP_REPLY)
    with pytest.raises(redis.ConnectionError):
        client.eval(script, 0)
    assert directly(server, "a") == b"2"


@pytest.mark.parametrize("protocol", [2, 3])
def test_messages_come_between_commands_and_are_the_reply_of_none(
    proxy: Proxy, connect: Callable[..., redis.Redis], server: RedisServer, protocol: int
) -> None:
    with listening(connect(protocol=protocol)) as listener, server.client() as other:
        listener.subscribe("one", "two")
        listener.psubscribe("t*")
        assert [received(listener)["type"] for _ in range(3)] == ["subscribe", "subscribe", "psubscribe"]
        other.publish("one", "hello")
        assert received(listener)["data"] == b"hello"
        listener.unsubscribe()
        listener.punsubscribe()
        assert [received(listener)["type"] for _ in range(3)] == ["unsubscribe", "unsubscribe", "punsubscribe"]
        proxy.rule = to(b"SUBSCRIBE", DROP_REPLY)
        listener.subscribe("one", "two")
        with pytest.raises(redis.ConnectionError):
            received(listener)


def test_pushes_of_protocol_3_do_not_use_up_the_fate_of_a_command(proxy: Proxy, wire: Wire, server: RedisServer) -> None:
    subscribed = b">3\r\n$9\r\nsubscribe\r\n$3\r\none\r\n:1\r\n"
    message = b">3\r\n$7\r\nmessage\r\n$3\r\none\r\n$5\r\nhello\r\n"
    proxy.rule = to(b"BLPOP", DROP_REPLY)
    wire.send(b"HELLO 3", b"SUBSCRIBE one", b"BLPOP list 5")
    with server.client() as other:
        until(lambda: other.publish("one", "hello"))
        other.rpush("list", "x")
        assert wire.rest().endswith(subscribed + message)
        assert other.llen("list") == 0


def test_cutting_all_ends_every_connection_and_new_ones_are_taken(proxy: Proxy) -> None:
    with Wire(proxy.port) as one, Wire(proxy.port) as two:
        for wire in (one, two):
            wire.send(b"PING")
            assert wire.said(b"+PONG\r\n")
        proxy.cut_all()
        assert one.is_cut()
        assert two.is_cut()
    with Wire(proxy.port) as three:
        three.send(b"PING")
        assert three.said(b"+PONG\r\n")


def test_a_black_hole_swallows_all_until_it_is_healed(proxy: Proxy, wire: Wire, server: RedisServer) -> None:
    wire.send(b"PING")
    assert wire.said(b"+PONG\r\n")
    proxy.blackhole()
    wire.send(b"SET a 1")
    with Wire(proxy.port) as new, Wire(proxy.port) as idle:
        new.send(b"SET b 1")
        assert wire.is_silent()
        assert new.is_silent()
        proxy.heal()
        assert [directly(server, key) for key in "ab"] == [None, None]
        idle.send(b"PING")
        assert idle.said(b"+PONG\r\n")
    wire.send(b"SET a 1")
    assert wire.is_silent()
    assert directly(server, "a") is None


def test_a_reply_that_meets_the_black_hole_is_of_a_command_that_took_effect(proxy: Proxy, wire: Wire, server: RedisServer) -> None:
    wire.send(b"BLPOP list 5")
    with server.client() as other:
        until(lambda: other.info("clients")["blocked_clients"])
        proxy.blackhole()
        other.rpush("list", "x")
        assert wire.is_silent()
        assert other.llen("list") == 0


def test_nobody_hears_through_the_black_hole_that_the_other_side_has_closed(proxy: Proxy, server: RedisServer) -> None:
    wire = Wire(proxy.port)
    wire.send(b"CLIENT SETNAME lost")
    assert wire.said(b"+OK\r\n")
    proxy.blackhole()
    wire.__exit__()
    with server.client() as other:
        assert _is_connected(other, "lost")
        proxy.heal()
        until(lambda: not _is_connected(other, "lost"))


def test_a_server_that_goes_away_in_the_black_hole_is_not_missed() -> None:
    with RedisServer() as own, Proxy(HOST, own.port) as proxy, Wire(proxy.port) as wire:
        wire.send(b"PING")
        assert wire.said(b"+PONG\r\n")
        proxy.blackhole()
        own.kill()
        with Wire(proxy.port) as new:
            new.send(b"PING")
            assert new.is_silent()
        assert wire.is_silent()


def test_without_a_server_the_connection_is_cut() -> None:
    with RedisServer() as own, Proxy(HOST, own.port) as proxy, Wire(proxy.port) as wire:
        wire.send(b"PING")
        assert wire.said(b"+PONG\r\n")
        own.kill()
        assert wire.is_cut()
        with Wire(proxy.port) as new:
            assert new.is_cut()


def test_refusing_keeps_the_old_connections_and_takes_no_new_ones(proxy: Proxy, wire: Wire) -> None:
    wire.send(b"PING")
    assert wire.said(b"+PONG\r\n")
    proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        Wire(proxy.port)
    wire.send(b"PING")
    assert wire.said(b"+PONG\r\n")
    proxy.listen_again()
    with Wire(proxy.port) as new:
        new.send(b"PING")
        assert new.said(b"+PONG\r\n")


def test_latency_holds_back_each_command(proxy: Proxy, client: redis.Redis) -> None:
    client.ping()
    proxy.latency = 0.05
    began = time.monotonic()
    client.ping()
    client.ping()
    assert time.monotonic() - began >= 0.1


def test_without_a_dialect_bytes_pass_and_no_rule_is_asked(server: RedisServer) -> None:
    def rule(command: Command) -> Fate:
        raise AssertionError(command)

    with Proxy(HOST, server.port, rule=rule, parse=None) as proxy, Wire(proxy.port) as wire:
        wire.send(b"SET a 1")
        assert wire.said(b"+OK\r\n")
        proxy.latency = 0.05
        began = time.monotonic()
        wire.send(b"GET a")
        assert wire.said(b"$1\r\n1\r\n")
        assert time.monotonic() - began >= 0.05
        proxy.blackhole()
        wire.send(b"SET a 2")
        assert wire.is_silent()
        proxy.cut_all()
        assert wire.is_cut()
        assert (proxy.counts, directly(server, "a")) == ({}, b"1")


def test_what_a_rule_raises_cuts_the_connection_and_is_raised_at_the_end(server: RedisServer) -> None:
    def rule(command: Command) -> Fate:
        raise ZeroDivisionError(command)

    def use() -> None:
        with Proxy(HOST, server.port, rule=rule) as proxy, Wire(proxy.port) as wire:
            wire.send(b"PING")
            assert wire.is_cut()

    with pytest.raises(ZeroDivisionError):
        use()


def test_it_leaves_no_thread_behind(server: RedisServer) -> None:
    before = threading.active_count()
    with Proxy(HOST, server.port) as proxy, Wire(proxy.port):
        assert threading.active_count() == before + 1
    assert threading.active_count() == before


def test_the_address_has_what_a_client_needs(proxy: Proxy) -> None:
    assert proxy.url() == f"redis://127.0.0.1:{proxy.port}"
    assert proxy.url("postgresql", credentials="me:secret", path="/jobs") == f"postgresql://me:secret@127.0.0.1:{proxy.port}/jobs"


REPLIES = [
    b"+OK\r\n",
    b"-ERR no\r\n",
    b":1\r\n",
    b"$-1\r\n",
    b"*-1\r\n",
    b"_\r\n",
    b"$0\r\n\r\n",
    b"$4\r\n\r\n*1\r\n",
    b",1.5\r\n",
    b"#t\r\n",
    b"(123\r\n",
    b"!5\r\nERR x\r\n",
    b"=7\r\ntxt:abc\r\n",
    b"*2\r\n*1\r\n:1\r\n*0\r\n",
    b"%1\r\n+a\r\n*1\r\n$1\r\nb\r\n",
    b"~2\r\n:1\r\n:2\r\n",
    b"|1\r\n+ttl\r\n:9\r\n*1\r\n:1\r\n",
    b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\na\r\n",
]


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_replies_of_every_type_are_taken_apart_wherever_the_packets_end(size: int) -> None:
    stream, resp = b"".join(REPLIES), Resp()
    packets = [stream[at : at + size] for at in range(0, len(stream), size)]
    assert [reply for packet in packets for reply in resp.replies(packet)] == REPLIES


LIKE_A_MESSAGE = b"*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$1\r\nb\r\n"


def test_an_array_that_looks_like_a_message_is_a_reply_to_one_who_has_not_subscribed() -> None:
    assert Resp().share(LIKE_A_MESSAGE, Request(b"", (b"LRANGE",))) is Share.WHOLE


@pytest.mark.parametrize(("mark", "share"), [(b"*", Share.NONE), (b">", Share.WHOLE)])
def test_to_a_subscriber_such_an_array_is_a_message_in_protocol_2_alone(mark: bytes, share: Share) -> None:
    resp = Resp()
    confirmation = mark + b"3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n"
    assert resp.share(confirmation, Request(b"", (b"SUBSCRIBE", b"a"))) is Share.WHOLE
    assert resp.share(LIKE_A_MESSAGE, Request(b"", (b"PING",))) is share


def _is_connected(client: redis.Redis, name: str) -> bool:
    return name in [other["name"] for other in client.client_list()]

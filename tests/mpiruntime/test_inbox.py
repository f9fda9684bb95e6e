"""The coordinator's socket: messages in, events out, and nothing left of a client that is gone."""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from ollampi.mpiruntime import wire
from ollampi.mpiruntime.inbox import SocketInbox


@pytest.fixture
def inbox() -> Iterator[SocketInbox]:
    inbox = SocketInbox(f"unix:@ollampi-test-{secrets.token_hex(8)}")
    yield inbox
    inbox.close()


def connect(inbox: SocketInbox) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(wire.unix_address(inbox.address))
    return connection


def num_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_messages_come_in_order_and_events_go_back(inbox: SocketInbox) -> None:
    with connect(inbox) as connection:
        for number in range(3):
            wire.send(connection, {"op": "loaded", "id": number})
        for number in range(3):
            taken = inbox.get(5)
            assert taken is not None
            assert taken[1]["id"] == number
            taken[0].post({"id": number})
        received: list[int] = []
        while len(received) < 3:
            received += [event["id"] for event in wire.receive(connection)["events"]]
        assert received == [0, 1, 2]


def test_a_message_counts_from_when_it_came_however_late_it_is_taken(inbox: SocketInbox) -> None:
    with connect(inbox) as connection:
        wire.send(connection, {"op": "loaded", "id": 1})
        time.sleep(0.3)
        before = time.monotonic()
        taken = inbox.get(5)
        assert taken is not None
        assert taken[1]["arrived"] < before - 0.1


@pytest.mark.parametrize("farewell", ["close", "junk", "silence"])
def test_nothing_is_left_of_clients_that_are_gone(inbox: SocketInbox, farewell: str) -> None:
    before = num_descriptors()
    for _ in range(20):
        connection = connect(inbox)
        wire.send(connection, {"op": "loaded", "id": 1})
        taken = inbox.get(5)
        assert taken is not None
        if farewell == "silence":  # it never reads what it asked for, so the writer waits for it
            for _ in range(50):
                taken[0].post({"id": 1, "text": "x" * 100_000})
        if farewell == "junk":
            connection.sendall(b"\xff" * 64)
        connection.close()
        gone = inbox.get(5)
        assert gone is not None
        assert gone[1] == {"op": "gone"}
    deadline = time.monotonic() + 5
    while num_descriptors() > before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert num_descriptors() == before


def test_what_is_collected_goes_out_in_one_frame_before_what_is_posted(inbox: SocketInbox) -> None:
    with connect(inbox) as connection:
        connection.settimeout(5)
        wire.send(connection, {"op": "loaded", "id": 0})
        taken = inbox.get(5)
        assert taken is not None
        for number in range(3):
            taken[0].collect({"id": number})
        inbox.flush()
        inbox.flush()
        taken[0].collect({"id": 3})
        taken[0].post({"id": 4})
        taken[0].post({"id": 5})
        frames = [wire.receive(connection)["events"] for _ in range(3)]
        assert [[event["id"] for event in events] for events in frames] == [[0, 1, 2], [3, 4], [5]]


def test_a_client_that_reads_late_gets_everything_in_order_and_holds_nobody_up(inbox: SocketInbox) -> None:
    with connect(inbox) as connection:
        wire.send(connection, {"op": "loaded", "id": 0})
        taken = inbox.get(5)
        assert taken is not None
        for number in range(200):
            taken[0].post({"id": number, "text": "x" * 50_000})  # far more than the socket holds
        received = [wire.receive(connection)["events"][0]["id"] for _ in range(200)]
        taken[0].post({"id": 200})
        received.append(wire.receive(connection)["events"][0]["id"])
        assert received == list(range(201))


def test_clients_that_are_abandoned_learn_why_those_to_come_too(inbox: SocketInbox) -> None:
    with connect(inbox) as early, connect(inbox) as behind:
        for connection in (early, behind):
            wire.send(connection, {"op": "loaded", "id": 7})
            taken = inbox.get(5)
            assert taken is not None
        for _ in range(20):
            taken[0].post({"id": 7, "text": "x" * 50_000})  # more than the socket holds
        reading = threading.Thread(target=lambda: texts.extend(read_all(behind)))
        texts: list[wire.Message] = []
        reading.start()
        inbox.abandon("it is over")
        reading.join(10)
        with connect(inbox) as late:
            for connection in (early, late):
                assert read_all(connection) == [{"id": 0, "kind": "ending", "message": "it is over"}]
    assert texts[-1] == {"id": 0, "kind": "ending", "message": "it is over"}
    assert len(texts) == 21


def read_all(connection: socket.socket) -> list[wire.Message]:
    """Return the events until the connection is closed."""
    connection.settimeout(5)
    events: list[wire.Message] = []
    while True:
        try:
            events += wire.receive(connection)["events"]
        except wire.Closed:
            return events

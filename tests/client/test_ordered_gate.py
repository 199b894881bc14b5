import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from jrm_client.ordered_gate import OrderedGate


def test_threads_go_in_the_order_of_their_tickets() -> None:
    gate = OrderedGate()
    tickets = [gate.draw() for _ in range(8)]
    went: list[int] = []

    def go(ticket: int) -> None:
        with gate.turn(ticket):
            went.append(ticket)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(go, reversed(tickets)))
    assert went == tickets


def test_a_turn_that_fails_is_over() -> None:
    gate = OrderedGate()
    first, second = gate.draw(), gate.draw()
    with pytest.raises(KeyError), gate.turn(first):
        raise KeyError
    with gate.turn(second):
        pass


def test_a_ticket_that_is_given_back_holds_nobody_up() -> None:
    gate = OrderedGate()
    first, second, third = (gate.draw() for _ in range(3))
    gate.skip(second)
    done = threading.Event()

    def go() -> None:
        with gate.turn(third):
            done.set()

    thread = threading.Thread(target=go)
    thread.start()
    assert not done.is_set()
    with gate.turn(first):
        pass
    thread.join()
    assert done.is_set()

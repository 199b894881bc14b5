import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from jrm_client.turns import Turns


def test_threads_go_in_the_order_of_their_tickets() -> None:
    turns = Turns()
    tickets = [turns.draw() for _ in range(8)]
    went: list[int] = []

    def go(ticket: int) -> None:
        with turns.turn(ticket):
            went.append(ticket)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(go, reversed(tickets)))
    assert went == tickets


def test_a_turn_that_fails_is_over() -> None:
    turns = Turns()
    first, second = turns.draw(), turns.draw()
    with pytest.raises(KeyError), turns.turn(first):
        raise KeyError
    with turns.turn(second):
        pass


def test_a_ticket_that_is_given_back_holds_nobody_up() -> None:
    turns = Turns()
    first, second, third = (turns.draw() for _ in range(3))
    turns.skip(second)
    done = threading.Event()

    def go() -> None:
        with turns.turn(third):
            done.set()

    thread = threading.Thread(target=go)
    thread.start()
    assert not done.is_set()
    with turns.turn(first):
        pass
    thread.join()
    assert done.is_set()

"""What `JRM_EDITED` names in these tests: completions get the next of the pictures, whatever they say."""

import itertools

from trainers.reward_server import BROKEN, EDITS

_edits = itertools.cycle(EDITS)
_with_a_broken_one = itertools.cycle([*EDITS[:3], BROKEN])


def draw(completion: str):
    return next(_edits)


def draw_one_broken(completion: str):
    return next(_with_a_broken_one)


def nothing(completion: str):
    return None

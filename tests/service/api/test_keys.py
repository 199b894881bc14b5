"""API keys: their lines, their hashes, and finding one."""

import hashlib

import pytest

from jrm_service.api.keys import Key, KeyRing, digest, is_name, new_secret, parse
from jrm_service.errors import KeysError

ONE, TWO = digest(b"one"), digest(b"two")


def problems(text: str) -> list[str]:
    with pytest.raises(KeysError) as refused:
        parse(text)
    return refused.value.problems


def test_a_key_is_long_random_and_printable():
    keys = {new_secret() for _ in range(100)}
    assert len(keys) == 100
    for key in keys:
        assert key.startswith("jrm_")
        assert len(key) >= 4 + 256 / 6
        assert key.isascii()
        assert not set(key) & set(" \t\r\n,;\"'#:")


def test_what_is_stored_is_the_sha256():
    assert digest(b"one").hex() == hashlib.sha256(b"one").hexdigest()


def test_a_file_with_comments_blank_lines_and_limits():
    text = f"""# who may

trainer-a sha256:{ONE.hex()} requests=64 candidates_per_minute=20000  # the big one
\teval\tsha256:{TWO.hex().upper()}
"""
    assert parse(text) == [Key("trainer-a", ONE, requests=64, candidates_per_minute=20000), Key("eval", TWO)]


def test_an_empty_file_has_no_keys():
    assert parse("") == parse("\n# none yet\n") == []


KEYS = [Key("a", ONE), Key("b", TWO, requests=1), Key("c.d-e_f", ONE, 7, 8), Key("e", ONE, scopes=("watch",))]


@pytest.mark.parametrize("key", KEYS)
def test_a_key_survives_its_line(key):
    assert parse(key.line()) == [key]


BAD = {
    "no hash": "trainer-a",
    "another hash": f"trainer-a md5:{'0' * 32}",
    "a short hash": f"trainer-a sha256:{'0' * 63}",
    "a bare hash": f"trainer-a {'0' * 64}",
    "not hexadecimal": f"trainer-a sha256:{'g' * 64}",
    "a name that is a path": f"../x sha256:{'0' * 64}",
    "a long name": f"{'x' * 65} sha256:{'0' * 64}",
    "an unknown limit": f"trainer-a sha256:{'0' * 64} speed=5",
    "a limit of nothing": f"trainer-a sha256:{'0' * 64} requests=0",
    "a limit that is no number": f"trainer-a sha256:{'0' * 64} requests=many",
    "an unknown scope": f"trainer-a sha256:{'0' * 64} scope=watch,everything",
    "an empty scope": f"trainer-a sha256:{'0' * 64} scope=",
    "scopes with a gap": f"trainer-a sha256:{'0' * 64} scope=watch, watch",
    "a scope twice in a list": f"trainer-a sha256:{'0' * 64} scope=watch,watch",
    "scopes twice": f"trainer-a sha256:{'0' * 64} scope=watch scope=watch",
    "a limit twice": f"trainer-a sha256:{'0' * 64} requests=1 requests=2",
}


@pytest.mark.parametrize("kind", BAD)
def test_a_line_that_is_wrong_is_told_by_its_number(kind):
    good = f"good sha256:{ONE.hex()}"
    [problem] = problems(f"{good}\n\n{BAD[kind]}\n")
    assert problem.startswith("line 3: ")


def test_scopes_are_in_any_place_and_an_unknown_one_is_told_with_those_there_are():
    assert parse(f"a sha256:{ONE.hex()} scope=watch requests=3") == [Key("a", ONE, requests=3, scopes=("watch",))]
    [problem] = problems(f"a sha256:{ONE.hex()} scope=wach")
    assert "there is watch" in problem
    assert "wach" not in problem


def test_every_problem_is_told():
    assert len(problems(f"a\nb sha256:{ONE.hex()}\nc\n")) == 2


def test_a_name_or_a_key_that_is_there_twice():
    assert problems(f"a sha256:{ONE.hex()}\na sha256:{TWO.hex()}") == ["line 2: the same name as in line 1"]
    assert problems(f"a sha256:{ONE.hex()}\nb sha256:{ONE.hex()}") == ["line 2: the same key as in line 1"]


def test_a_key_that_was_pasted_into_the_file_is_not_repeated():
    secret = new_secret()
    for line in (secret, f"trainer-a {secret}", f"{secret} trainer-a", f"a sha256:{'0' * 64} {secret}"):
        assert secret not in "".join(problems(line))


@pytest.mark.parametrize(
    ("name", "good"), [("a", True), ("A-1.b_c", True), ("", False), ("-a", False), ("a b", False), ("é", False)]
)
def test_names(name, good):
    assert is_name(name) is good


def test_a_ring_finds_each_of_its_keys_and_nothing_else():
    ring = KeyRing([Key("a", ONE), Key("b", TWO)])
    assert (ring.find(b"one").name, ring.find(b"two").name) == ("a", "b")
    for secret in (b"", b"One", b"one ", b"a", ONE, ONE.hex().encode(), b"\xff" * 10_000):
        assert ring.find(secret) is None


def test_an_empty_ring_finds_nothing():
    assert KeyRing([]).find(b"one") is None

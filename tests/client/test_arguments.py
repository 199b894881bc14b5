import pytest

from jrm_client import JRMClient, arguments


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("http://localhost:8000/", ("http://localhost:8000",)),
        ("https://host/jrm/", ("https://host/jrm",)),
        (["http://a", "http://b", "http://a"], ("http://a", "http://b")),
        (["http://a", "http://a/"], ("http://a",)),
        ("http://a:1,http://b:2", ("http://a:1", "http://b:2")),
        (["http://a:1,", " http://b:2/"], ("http://a:1", "http://b:2")),  # how a shell splits "http://a:1, http://b:2/"
    ],
)
def test_base_urls(given: str | list[str], expected: tuple[str, ...]) -> None:
    assert arguments.base_urls(given) == expected


@pytest.mark.parametrize(
    "url", ["localhost:8000", "", ",", "ftp://host", "http://a:1,b:2", "http://", "http://host?x=1", "http://host#x"]
)
def test_what_is_not_an_http_url(url: str) -> None:
    with pytest.raises(ValueError, match="base_url"):
        arguments.base_urls(url)


def test_no_url() -> None:
    with pytest.raises(ValueError, match="at least one"):
        arguments.base_urls([])


@pytest.mark.parametrize("password", ["s3cret", "s3cret,", ",s3cret"])
def test_credentials_in_a_url_are_refused_without_repeating_them(password: str) -> None:
    with pytest.raises(ValueError, match="api_key") as caught:
        arguments.base_urls(f"http://user:{password}@host")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("bad", ["", "two words", "line\nbreak", "schlüssel"])
def test_a_key_that_no_header_can_carry_is_refused_without_repeating_it(bad: str) -> None:
    with pytest.raises(ValueError, match="api_key") as caught:
        arguments.key(bad)
    assert not bad or bad not in str(caught.value)


@pytest.mark.parametrize("timeout", [0, -1.0, float("nan"), float("inf")])
def test_a_timeout_is_positive_and_finite(timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout"):
        arguments.seconds(timeout)


@pytest.mark.parametrize(("pin", "error"), [("", ValueError), (" ", ValueError), (1, TypeError), (None, TypeError)])
def test_a_pin_is_a_choice_or_a_fingerprint(pin: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="pin_fingerprint"):
        arguments.pin(pin)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "  \n", "\ud800"])
def test_instructions_that_no_server_takes(text: str) -> None:
    with pytest.raises(ValueError, match=r"^pairs\[2\]\.instruction: "):
        arguments.instruction(text, "pairs[2].instruction")


def test_an_instruction_is_text() -> None:
    with pytest.raises(TypeError, match="instruction: NoneType"):
        arguments.instruction(None, "instruction")  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"max_retries": -1}, {"max_concurrency": 0}, {"image_format": "jpeg"}])
def test_wrong_options(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        JRMClient("http://localhost", **options)  # type: ignore[arg-type]


def test_dimensions_are_a_list_of_names_or_all() -> None:
    assert arguments.dimensions(None) is None
    assert arguments.dimensions(("a", "b")) == ["a", "b"]


@pytest.mark.parametrize(("names", "error"), [("quality", TypeError), ([1], TypeError), ([], ValueError)])
def test_dimensions_that_are_none(names: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="dimensions"):
        arguments.dimensions(names)  # type: ignore[arg-type]


@pytest.mark.parametrize(("limit", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError)])
def test_a_token_limit_is_positive_and_whole(limit: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="max_tokens"):
        arguments.integer(limit, "max_tokens", 1)

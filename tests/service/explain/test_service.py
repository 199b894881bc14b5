"""A request's way to its critiques, with a writer that does what a test needs."""

import asyncio
import io
from collections.abc import Sequence
from contextlib import aclosing

import numpy as np
import pytest
from PIL import Image as PILImage
from prometheus_client import CollectorRegistry

from jrm_service.errors import (
    DeadlineExceeded,
    Draining,
    ExplainUnavailable,
    InstructionTooLong,
    InvalidImage,
    InvalidRequest,
    Overloaded,
)
from jrm_service.explain.critique import schema
from jrm_service.explain.service import Delta, Done, ExplainLimits, ExplainService, Question
from jrm_service.explain.writer import Piece
from jrm_service.metrics import Metrics
from jrm_service.scoring.service import ImageInput
from jrm_service.scoring.types import Image, ServedModel, Text, TokenSequence
from support.writers import ScriptedWriter

IMAGE_ID = 99
WRITTEN = (Piece('{"reasoning": "<|global|> good'), Piece('."}', "stop", 9))


class Questions:
    """Every image is 3 tokens; the text is the dimension's length and the instruction's."""

    def __init__(self, max_sources: int = 1) -> None:
        self.max_sources = max_sources

    def image(self, rgb):
        return Image(rgb.tobytes()[:8], np.asarray(rgb), 3)

    def question(self, dimension, sources, edited, instruction):
        if instruction == "too long for the model":
            raise InstructionTooLong(instruction)
        text = Text((1, len(dimension), len(instruction)))
        return TokenSequence((Text((7,)), *sources, edited, text), tail=(8,))


def service(writer: ScriptedWriter, **limits: int) -> ExplainService:
    given = {
        "max_pixels": 10_000,
        "max_decoded_bytes": 10_000_000,
        "max_instruction_chars": 50,
        "max_tokens": 40,
        "max_requests": 2,
        "context": 1000,
    }
    return ExplainService(
        ServedModel("m", "f", {}),
        {"quality": False, "following": True},
        Questions(),
        IMAGE_ID,
        writer,
        limits=ExplainLimits(**given | limits),
        threads=2,
        metrics=Metrics(CollectorRegistry()),
    )


def image(colour: str = "red", side: int = 8) -> ImageInput:
    buffer = io.BytesIO()
    PILImage.new("RGB", (side, side), colour).save(buffer, "PNG")
    return ImageInput.of("edited", buffer.getvalue())


def question(dimensions: Sequence[str] | None = ("quality",), **changes) -> Question:
    given = {
        "sources": [image()],
        "edited": image("blue"),
        "instruction": "paint",
        "max_tokens": 100,
        "timeout_s": 30.0,
    }
    return Question(**given | changes, dimensions=dimensions)


async def events(explainer: ExplainService, asked: Question) -> list[Delta | Done]:
    async with aclosing(explainer.explain(asked)) as found:
        return [event async for event in found]


def run(explainer: ExplainService, asked: Question) -> list[Delta | Done]:
    return asyncio.run(events(explainer, asked))


def test_deltas_and_then_the_explanation():
    first, second, done = run(service(ScriptedWriter(*WRITTEN)), question())
    assert (first, second) == (Delta("quality", '{"reasoning": "<|global|> good'), Delta("quality", '."}'))
    assert done.explanation.status == "ok"
    assert done.explanation.reasoning == "<|global|> good."
    assert done.error is None
    assert (done.explanation.usage.prompt_tokens, done.explanation.usage.completion_tokens) == (11, 9)


def test_the_prompt_has_one_placeholder_for_each_image():
    writer = ScriptedWriter(*WRITTEN)
    run(service(writer), question())
    ((prompt, _, asked_for),) = writer.asked
    assert prompt.ids == [7, IMAGE_ID, IMAGE_ID, 1, len("quality"), len("paint"), 8]
    assert [pixels[0, 0].tolist() for pixels in prompt.images] == [[255, 0, 0], [0, 0, 255]]
    assert prompt.tokens == 1 + 3 + 3 + 3 + 1
    assert asked_for == schema(False)


def test_every_dimension_by_default():
    done = [event for event in run(service(ScriptedWriter(*WRITTEN)), question(None)) if isinstance(event, Done)]
    assert {event.dimension for event in done} == {"quality", "following"}


@pytest.mark.parametrize(("asked", "context", "given"), [(10, 1000, 10), (100, 1000, 40), (100, 30, 19)])
def test_the_answer_is_bounded_by_the_request_the_setting_and_the_context(asked, context, given):
    writer = ScriptedWriter(*WRITTEN)
    run(service(writer, context=context), question(max_tokens=asked))
    assert writer.asked[0][1] == given


def test_a_prompt_that_leaves_no_room_for_an_answer_is_refused():
    writer = ScriptedWriter(*WRITTEN)
    with pytest.raises(InstructionTooLong, match="11 tokens, the limit is 11"):
        run(service(writer, context=11), question())
    assert writer.asked == []


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"dimensions": ("beauty",)}, InvalidRequest),
        ({"instruction": "x" * 51}, InstructionTooLong),
        ({"instruction": "too long for the model"}, InstructionTooLong),
        ({"edited": ImageInput.of("edited", b"not an image")}, InvalidImage),
        ({"sources": [ImageInput.of("source", InvalidImage("not valid base64"))]}, InvalidImage),
        ({"sources": []}, InvalidRequest),
        ({"sources": [image(), image()]}, InvalidRequest),
    ],
)
def test_what_cannot_be_asked_is_said_before_anything_is_written(changes, error):
    writer = ScriptedWriter(*WRITTEN)
    with pytest.raises(error):
        run(service(writer), question(**{"dimensions": ("quality",)} | changes))
    assert writer.asked == []


def test_an_image_is_named():
    with pytest.raises(InvalidImage, match="edited: not a PNG"):
        run(service(ScriptedWriter()), question(edited=ImageInput.of("edited", b"?")))


def test_an_engine_that_is_not_there():
    writer = ScriptedWriter(*WRITTEN)
    writer.up = False
    with pytest.raises(ExplainUnavailable) as raised:
        run(service(writer), question())
    assert raised.value.retry_after == 7


def test_an_engine_that_dies_while_it_writes_ends_its_dimension_and_keeps_the_text():
    done = run(service(ScriptedWriter(WRITTEN[0], ExplainUnavailable("the engine died"))), question())[-1]
    assert isinstance(done.error, ExplainUnavailable)
    assert done.explanation.status == "error"
    assert done.explanation.error.code == "explain_unavailable"
    assert done.explanation.raw == WRITTEN[0].text


def test_a_defect_of_the_writer_is_an_internal_error_that_says_nothing():
    done = run(service(ScriptedWriter(RuntimeError("secret path"))), question())[-1]
    assert done.explanation.error.code == "internal"
    assert "secret" not in done.explanation.error.message


def test_a_defect_in_reading_an_answer_ends_its_dimension():
    """Nobody else would: the caller waits for one Done of each dimension, without a deadline of its own."""
    strange = Piece("{}", object(), 9)  # type: ignore[arg-type]
    [_, done] = run(service(ScriptedWriter(strange)), question())
    assert (done.explanation.status, done.explanation.error.code) == ("error", "internal")


def test_an_answer_without_an_end_is_an_error():
    done = run(service(ScriptedWriter(WRITTEN[0])), question())[-1]
    assert done.explanation.status == "error"


def test_a_deadline_ends_the_writing():
    async def scenario() -> None:
        writer = ScriptedWriter(WRITTEN[0], asyncio.Event())
        found = await events(service(writer), question(timeout_s=0.2))
        assert isinstance(found[-1].error, DeadlineExceeded)
        assert found[-1].explanation.raw == WRITTEN[0].text
        assert writer.writing == 0

    asyncio.run(scenario())


def test_leaving_stops_the_writing():
    async def scenario() -> None:
        writer = ScriptedWriter(WRITTEN[0], asyncio.Event())
        async with aclosing(service(writer).explain(question(None))) as found:
            await anext(found)
            await anext(found)
            assert writer.writing == 2
        assert writer.writing == 0

    asyncio.run(scenario())


def test_more_than_the_limit_is_refused_at_once():
    async def scenario() -> None:
        explainer = service(ScriptedWriter(WRITTEN[0], asyncio.Event()))
        async with aclosing(explainer.explain(question())) as one, aclosing(explainer.explain(question())) as two:
            await anext(one)
            await anext(two)
            with pytest.raises(Overloaded) as raised:
                await events(explainer, question())
            assert raised.value.retry_after > 0
        assert len(await events(service(ScriptedWriter(*WRITTEN)), question())) == 3

    asyncio.run(scenario())


def test_draining_refuses_new_requests_and_waits_for_those_that_run():
    async def scenario() -> None:
        go_on = asyncio.Event()
        explainer = service(ScriptedWriter(WRITTEN[0], go_on, WRITTEN[1]))
        running = asyncio.create_task(events(explainer, question()))
        await explainer.writer.started.wait()
        draining = asyncio.create_task(explainer.drain())
        await asyncio.sleep(0)
        assert explainer.state()[0] == "draining"
        with pytest.raises(Draining):
            await events(explainer, question())
        assert not draining.done()
        go_on.set()
        assert (await running)[-1].explanation.status == "ok"
        await draining

    asyncio.run(scenario())

"""The corrector does what the critique says, and can see nothing but image, instruction and critique."""

import ast
import inspect
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image

import corrector
from corrector import Change, Wish, correct, read_changes, read_flaw, read_wish
from jrm_client import Explanation
from jrm_client.protocol import EditRegion, Segment
from jrm_training.world.scene import Scene, Shape, draw
from jrm_training.world.tasks import SEEN, sample_task

EXAMPLES = Path(corrector.__file__).parent
SIDE = 128
RED, BLUE = ("red", "square"), ("blue", "circle")
SQUARE = Shape("square", "red", (220, 30, 30), 0.3, 0.3, 0.15)
CIRCLE = Shape("circle", "blue", (30, 70, 225), 0.7, 0.7, 0.12)
RGB = {"green": (20, 150, 30), "blue": (30, 70, 225), "yellow": (250, 225, 30)}


def picture(*shapes):
    return draw(Scene(1.0, 1.0, (235, 235, 235), shapes), SIDE)


def recoloured(shape, colour):
    return replace(shape, colour=colour, rgb=RGB[colour])


def moved(shape, dx, dy):
    return replace(shape, x=shape.x + dx, y=shape.y + dy)


def box(shape):
    return tuple(round(SIDE * side) for side in shape.extent())


def critique(verdict, *regions):
    """Instruction following: words and the shape whose box they are about."""
    boxes = [
        EditRegion(id=number, label="shape", bbox_2d=(0, 0, 1, 1), bbox_pixels=box(shape))
        for number, (_, shape) in enumerate(regions)
    ]
    segments = [Segment(region=number, text=words) for number, (words, _) in enumerate(regions)]
    reasoning = f"<|global|> {verdict}: for a reason."
    return {
        "instruction_following": Explanation(status="ok", reasoning=reasoning, segments=segments, edit_regions=boxes)
    }


def quality(reason):
    return {
        "visual_quality": Explanation(status="ok", reasoning=f"<|global|> relatively poor: {reason}. Seen: nothing.")
    }


def apart(one, other):
    return np.abs(np.asarray(one, float) - np.asarray(other, float)).mean()


# --- what it reads ----------------------------------------------------------------------------------------------------


def test_every_sentence_of_the_world_is_understood():
    for seed in range(400):
        task = sample_task(Random(seed), shapes=(1, 4), palette=SEEN)
        old = None if task.target is None else (task.old.colour, task.old.kind)
        new = None if task.goal is None or task.verb == "move" else (task.goal.colour, task.goal.kind)
        assert read_wish(task.instruction) == Wish(old, new, task.direction), task.instruction


@pytest.mark.parametrize("instruction", ["", "make it nicer", "the elephant should be blue"])
def test_other_instructions_are_not_guessed_at(instruction):
    assert read_wish(instruction) is None
    image = picture(SQUARE)
    assert correct(image, instruction, critique("very poor")).tobytes() == image.tobytes()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("red square became blue circle.", {"before": RED, "after": BLUE}),
        ("red square is gone.", {"before": RED, "after": None}),
        ("red square is half gone.", {"before": RED, "after": None, "partly": True}),
        ("red square was half recoloured.", {"before": RED, "after": RED, "partly": True}),
        ("a blue circle was added.", {"before": None, "after": BLUE}),
        ("half a blue circle was added.", {"before": None, "after": BLUE, "partly": True}),
        ("red square moved up.", {"before": RED, "after": RED, "way": "up"}),
        ("red square moved left a little.", {"before": RED, "after": RED, "way": "left", "partly": True}),
    ],
)
def test_changes(words, expected):
    [change] = read_changes(critique("relatively poor", (words, SQUARE))["instruction_following"])
    assert change == Change(box=box(SQUARE), **expected)


def test_a_segment_without_a_box_or_with_other_words_says_nothing():
    said = critique("relatively poor", ("something odd.", SQUARE))["instruction_following"]
    assert not list(read_changes(said))
    assert not list(read_changes(said.model_copy(update={"edit_regions": []})))


def test_flaws():
    assert read_flaw(quality("severe noise")["visual_quality"]) == ("noise", "severe")
    assert read_flaw(quality("clean")["visual_quality"]) is None


# --- what it paints ---------------------------------------------------------------------------------------------------

CASES = {
    "unchanged, recolour": (
        "make the red square green",
        [SQUARE, CIRCLE],
        [],
        [recoloured(SQUARE, "green"), CIRCLE],
    ),
    "unchanged, remove": ("remove the red square", [SQUARE, CIRCLE], [], [CIRCLE]),
    "unchanged, replace": (
        "replace the red square with a blue circle",
        [SQUARE],
        [],
        [replace(CIRCLE, x=0.3, y=0.3, size=0.15)],
    ),
    "wrong colour": (
        "make the red square green",
        [recoloured(SQUARE, "yellow"), CIRCLE],
        [("red square became yellow square.", SQUARE)],
        [recoloured(SQUARE, "green"), CIRCLE],
    ),
    "wrong object": (
        "make the red square green",
        [SQUARE, recoloured(CIRCLE, "green")],
        [("blue circle became green circle.", CIRCLE)],
        [recoloured(SQUARE, "green"), CIRCLE],
    ),
    "too much added": (
        "make the red square green",
        [recoloured(SQUARE, "green"), CIRCLE],
        [("red square became green square.", SQUARE), ("a blue circle was added.", CIRCLE)],
        [recoloured(SQUARE, "green")],
    ),
    "another one added as well": (
        "add a red square",
        [CIRCLE, SQUARE],
        [("a blue circle was added.", CIRCLE), ("a red square was added.", SQUARE)],
        [SQUARE],
    ),
    "too much removed": (
        "remove the red square",
        [],
        [("red square is gone.", SQUARE), ("blue circle is gone.", CIRCLE)],
        [CIRCLE],
    ),
    "half gone": (
        "remove the red square",
        [replace(SQUARE, half="left"), CIRCLE],
        [("red square is half gone.", replace(SQUARE, half="left"))],
        [CIRCLE],
    ),
    "half recoloured": (
        "make the red square green",
        [replace(SQUARE, half="left", second=RGB["green"])],
        [("red square was half recoloured.", SQUARE)],
        [recoloured(SQUARE, "green")],
    ),
    "half added": (
        "add a blue circle",
        [SQUARE, replace(CIRCLE, half="left")],
        [("half a blue circle was added.", replace(CIRCLE, half="left"))],
        [SQUARE, CIRCLE],
    ),
    "moved too little": (
        "move the blue circle up",
        [SQUARE, moved(CIRCLE, 0, -0.1)],
        [("blue circle moved up a little.", moved(CIRCLE, 0, -0.1))],
        [SQUARE, moved(CIRCLE, 0, -0.4)],
    ),
    "moved the wrong way": (
        "move the blue circle up",
        [moved(CIRCLE, -0.3, 0)],
        [("blue circle moved left.", moved(CIRCLE, -0.3, 0))],
        [moved(CIRCLE, -0.3, -0.42)],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_wrong_is_put_right(case):
    instruction, before, regions, right = CASES[case]
    edited, wanted = picture(*before), picture(*right)
    corrected = correct(edited, instruction, critique("relatively poor", *regions))
    assert corrected.size == edited.size
    assert apart(corrected, wanted) < 0.2 * apart(edited, wanted)


def test_an_addition_that_is_missing_is_drawn_beside_the_others():
    edited = picture(SQUARE, CIRCLE)
    changed = np.asarray(correct(edited, "add a green triangle", critique("very poor"))) != np.asarray(edited)
    untouched = np.asarray(edited) != 235
    assert changed.any()
    assert not (changed & untouched).any()


def test_what_is_done_as_asked_is_left_alone():
    edited = picture(SQUARE, CIRCLE)
    for said in ({}, critique("very good", ("red square is gone.", SQUARE)), quality("clean")):
        assert correct(edited, "remove the red square", said).tobytes() == edited.tobytes()


def test_what_has_another_colour_is_not_taken_for_what_should_go():
    edited = picture(CIRCLE)
    said = critique("relatively good", ("red square is half gone.", CIRCLE))
    assert correct(edited, "remove the red square", said).tobytes() == edited.tobytes()


def test_a_shape_that_is_not_there_changes_nothing():
    edited = picture()
    regions = [("red square became blue square.", SQUARE), ("a blue circle was added.", CIRCLE)]
    assert correct(edited, "remove the yellow circle", critique("very poor", *regions)).tobytes() == edited.tobytes()


# --- what it cannot see -----------------------------------------------------------------------------------------------


def test_it_is_given_an_image_an_instruction_and_a_critique():
    signature = inspect.signature(correct, eval_str=True)
    assert [one.annotation for one in signature.parameters.values()] == [Image.Image, str, Mapping[str, Explanation]]


def test_it_imports_nothing_that_knows_the_world():
    allowed = {"__future__", "collections.abc", "colorsys", "dataclasses", "re", "numpy", "numpy.typing", "PIL"}
    for name, more in {"corrector": {"jrm_client", "painting"}, "painting": set()}.items():
        tree = ast.parse((EXAMPLES / f"{name}.py").read_text())
        imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {node.module for node in imports if isinstance(node, ast.ImportFrom)}
        names |= {alias.name for node in imports if isinstance(node, ast.Import) for alias in node.names}
        assert names <= allowed | more


def test_it_reads_no_file_and_imports_nothing_while_it_works(tmp_path):
    """In a process without training or service, in which any attempt to look elsewhere ends the program."""
    picture(SQUARE, CIRCLE).save(tmp_path / "edited.png")
    said = critique("very poor", ("blue circle is gone.", CIRCLE)) | quality("slight noise")
    (tmp_path / "critique.json").write_text(said["instruction_following"].model_dump_json())
    program = f"""
import sys
sys.modules["jrm_training"] = sys.modules["jrm_service"] = None
sys.path.insert(0, {str(EXAMPLES)!r})
from pathlib import Path
from PIL import Image
from corrector import correct
from jrm_client import Explanation
folder = Path({str(tmp_path)!r})
edited = Image.open(folder / "edited.png").convert("RGB")
said = {{"instruction_following": Explanation.model_validate_json((folder / "critique.json").read_text())}}
first = correct(edited, "make the red square green", said)  # what is imported lazily is there now
def refuse(event, arguments):
    if working and event.partition(".")[0] in ("open", "import", "socket", "subprocess", "os"):
        raise SystemExit(f"{{event}} {{arguments}}")
working = True
sys.addaudithook(refuse)
again = correct(edited, "make the red square green", said)
working = False
assert again.tobytes() == first.tobytes() != edited.tobytes()
"""
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr

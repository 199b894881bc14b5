"""Try: what is dropped, pasted or chosen comes back ranked, and what cannot be scored says why."""

import json
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from jrm_client import JRMClient, ScoreError
from jrm_client.probability import win_probability
from jrm_service.api.page.files import static_files
from support.pictures import encode, photo

from .browsing import EXAMPLE, axe_violations, file, fill, names, score

pytestmark = pytest.mark.heavy

HOSTILE = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>.png"
SOURCE = file("source.png", encode(photo(64, 64)))


@pytest.fixture(scope="module")
def example(served):
    """What the SDK says of the example, best first: (name, score) for each edit."""
    scene = json.loads(static_files()["scene.json"].content)
    picture = {name: static_files()[name].content for name in [scene["source"], *scene["edits"]]}
    with JRMClient(served) as client:
        group = client.score_group(
            picture[scene["source"]], scene["instruction"], [picture[one] for one in scene["edits"]]
        )
    return sorted(zip([Path(one).name for one in scene["edits"]], group, strict=True), key=lambda pair: -pair[1].reward)


def edits(count: int) -> list[dict]:
    return [file(f"edit-{number}.png", encode(photo(48, 48, seed=number))) for number in range(1, count + 1)]


def ranked(page: Page, count: int) -> None:
    expect(page.locator(".card")).to_have_count(count)


def test_the_example_is_ranked_as_the_sdk_ranks_it(open_page, served, example):
    page = open_page(served)
    page.get_by_role("button", name=EXAMPLE).first.click()
    ranked(page, len(example))
    assert names(page) == [name for name, _ in example]
    shown = page.locator(".card").first.locator(".bars dd .value").all_inner_texts()
    best = example[0][1]
    expected = [(best.reward, best.reward_std), *((one.mean, one.std) for one in best.dimensions.values())]
    assert shown == [f"{mean:.2f} ± {std:.2f}".replace("-", "−") for mean, std in expected]
    expect(page.locator("#live")).to_contain_text(f"{len(example)} edits ranked. Best: {example[0][0]}")
    assert axe_violations(page) == []


def test_two_edits_are_compared_by_keyboard_as_the_sdk_compares_them(open_page, served, example):
    page = open_page(served)
    page.get_by_role("button", name=EXAMPLE).first.click()
    ranked(page, len(example))
    for rank in (3, 5):
        page.get_by_role("button", name=f"Compare {rank}, {example[rank - 1][0]}").focus()
        page.keyboard.press("Enter")
    [(_, first), (_, second)] = example[2], example[4]
    expected = [win_probability(first.reward, first.reward_std, second.reward, second.reward_std)]
    for name, one in first.dimensions.items():
        expected.append(win_probability(one.mean, one.std, second.dimensions[name].mean, second.dimensions[name].std))
    shown = [float(odds.get_attribute("data-p")) for odds in page.locator(".odds").all()]
    assert shown == pytest.approx(expected, abs=1e-6)
    assert page.locator('[aria-pressed="true"]').count() == 2
    cells = page.locator(".matrix tr").nth(3).locator("td").all_inner_texts()
    assert len(cells) == len(example)
    assert cells[4] == f"{100 * expected[0]:.0f}%"


def test_win_probabilities_are_those_of_the_client(open_page, served):
    page = open_page(served)
    pairs = [
        (mean, std, other_std)
        for mean in (-60.0, -7.3, -1.0, -1e-3, 0.0, 0.4, 3.0, 25.0)
        for std in (0.0, 1e-9, 0.3, 0.999, 2.5, 50.0)
        for other_std in (0.0, 0.7, 4.0, None)
    ]
    script = """async (pairs) => {
      const { winProbability } = await import(new URL("page/probability.js", location.href));
      return pairs.map(([mean, std, other]) => winProbability({ mean, std }, { mean: 0, std: other }));
    }"""
    computed = page.evaluate(script, pairs)
    assert computed == pytest.approx([win_probability(mean, std, 0.0, other) for mean, std, other in pairs], abs=1e-9)


def test_pictures_are_chosen_dropped_pasted_and_taken_out(open_page, served):
    page = open_page(served)
    script = """([selector, type, name]) => {
      const canvas = new OffscreenCanvas(40, 40);
      canvas.getContext("2d").fillRect(0, 0, 20, 20);
      return canvas.convertToBlob().then((blob) => {
        const data = new DataTransfer();
        data.items.add(new File([blob], name, { type: "image/png" }));
        const event = type === "paste"
          ? new ClipboardEvent(type, { clipboardData: data, bubbles: true, cancelable: true })
          : new DragEvent(type, { dataTransfer: data, bubbles: true, cancelable: true });
        document.querySelector(selector).dispatchEvent(event);
      });
    }"""
    page.evaluate(script, ["body", "paste", "first.png"])
    expect(page.locator("#source .thumbs img")).to_have_attribute("alt", "first.png")
    page.evaluate(script, ["body", "paste", "second.png"])
    page.evaluate(script, ["#edits .drop", "drop", "third.png"])
    expect(page.locator("#edits .thumbs li")).to_have_count(2)
    page.evaluate(script, ["main", "drop", "lost.png"])  # beside the fields: nothing comes of it, and the page stays
    page.locator("#edits-files").set_input_files(edits(1))
    expect(page.locator("#edits .thumbs li")).to_have_count(3)
    page.get_by_role("button", name="Take out third.png").click()
    expect(page.locator("#edits .thumbs img")).to_have_count(2)
    expect(page.get_by_role("button", name="Take out edit-1.png")).to_be_focused()
    page.get_by_label("Instruction").fill("make it blue")
    page.keyboard.press("Control+Enter")
    ranked(page, 2)
    assert {*names(page)} == {"second.png", "edit-1.png"}


def test_an_edit_that_is_no_picture_says_so_and_the_others_are_ranked(open_page, served):
    page = open_page(served)
    bad = file("notes.png", b"no picture at all")
    fill(page, source=SOURCE, edits=[bad, *edits(2)])
    score(page)
    ranked(page, 3)
    assert names(page)[-1] == "notes.png"
    failed = page.locator(".card.failed")
    expect(failed).to_contain_text("not a PNG, JPEG, WebP or PPM image")
    expect(failed).to_contain_text("invalid_image")
    expect(failed.locator(".undrawn")).to_be_visible()
    expect(page.get_by_role("heading", name="2 edits ranked, 1 could not be scored")).to_be_visible()


def test_when_the_source_is_no_picture_it_is_said_at_the_source(open_page, served):
    page = open_page(served, refused=["422"])
    fill(page, source=file("source.png", b"no picture at all"), edits=edits(2))
    score(page)
    expect(page.locator("#source .problem")).to_contain_text("not a PNG, JPEG, WebP or PPM image")
    expect(page.locator(".card.failed")).to_have_count(2)
    assert axe_violations(page) == []


def test_names_and_instructions_are_text(open_page, served):
    page = open_page(served)
    fill(page, source=SOURCE, edits=[file(HOSTILE, edits(1)[0]["buffer"]), *edits(1)], instruction=HOSTILE)
    score(page)
    ranked(page, 2)
    assert any("<script>" in name for name in names(page))
    expect(page.locator(".quote")).to_have_text(HOSTILE)
    page.get_by_role("tab", name="Watch").click()
    expect(page.locator(".group .asked").first).to_have_text(HOSTILE)
    assert page.title() == "JRM Serve"
    assert page.locator("main script, main img[src=x]").count() == 0


def test_twenty_four_large_edits(open_page, served, tmp_path):
    paths = [tmp_path / f"{number}.jpg" for number in range(24)]
    large = photo(1048, 1024)
    for number, path in enumerate(paths):
        path.write_bytes(encode(large.crop((number, 0, number + 1024, 1024)), "JPEG", quality=90))
    page = open_page(served)
    fill(page, source=paths[0], edits=paths)
    expect(page.locator("#score")).to_have_text("Score 24 edits")
    score(page)
    ranked(page, 24)
    rewards = [
        float(one.replace("−", "-"))
        for one in page.locator(".reward").evaluate_all("all => all.map((one) => one.firstChild.textContent)")
    ]
    assert rewards == sorted(rewards, reverse=True)
    assert page.locator(".matrix").count() == 0
    expect(page.locator(".odds")).to_have_count(3)


def test_a_twenty_fifth_is_left_out_and_it_is_said(open_page, served):
    page = open_page(served)
    page.locator("#edits-files").set_input_files(edits(25))
    expect(page.locator("#edits .thumbs li")).to_have_count(24)
    expect(page.locator("#edits .problem")).to_have_text("24 pictures at most: 1 file left out.")


def test_what_is_missing_is_said_where_it_is_missing(open_page, served):
    page = open_page(served)
    score(page)
    expect(page.locator("#source .problem")).to_have_text("A source picture is needed.")
    expect(page.locator("#instruction-problem")).to_have_text("Say what was asked for.")
    expect(page.locator("#edits .problem")).to_have_text("At least one edit is needed.")
    expect(page.locator("#source-files")).to_be_focused()
    assert axe_violations(page) == []


def test_the_memory_of_pictures_is_given_back(open_page, served):
    page = open_page(served)
    page.evaluate("""() => {
      window.held = new Set();
      const { createObjectURL, revokeObjectURL } = URL;
      URL.createObjectURL = (blob) => { const url = createObjectURL.call(URL, blob); held.add(url); return url; };
      URL.revokeObjectURL = (url) => { held.delete(url); revokeObjectURL.call(URL, url); };
    }""")
    fill(page, source=SOURCE, edits=edits(3))
    for _ in range(2):
        score(page)
        ranked(page, 3)
        expect(page.locator("#score")).to_have_text("Score 3 edits")
    assert page.evaluate("held.size") == 4 + 3  # what was chosen, and what is ranked
    page.get_by_role("button", name="Clear").click()
    assert page.evaluate("held.size") == 0
    assert page.evaluate("localStorage.length + sessionStorage.length") == 0
    assert page.context.cookies() == []


def test_an_instruction_that_is_too_long_is_said_at_the_instruction(open_page, served):
    page = open_page(served, refused=["422"])
    fill(page, source=SOURCE, edits=edits(1), instruction="x" * 9000)
    with JRMClient(served) as client, pytest.raises(ScoreError) as told:
        client.score_group(SOURCE["buffer"], "x" * 9000, [edits(1)[0]["buffer"]])
    score(page)
    expect(page.locator("#instruction-problem")).to_contain_text("8,192" if "8,192" in str(told.value) else "8192")

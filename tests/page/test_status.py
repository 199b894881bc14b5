"""Status: the numbers of /metrics, drawn."""

import itertools

import httpx
import pytest
from playwright.sync_api import expect

from jrm_client import JRMClient
from support.pictures import encode, photo

pytestmark = pytest.mark.heavy

PICTURES = [encode(photo(40, 40, seed=seed)) for seed in range(9)]


def test_who_is_served_and_how_it_goes(open_page, served):
    page = open_page(f"{served}/#status")
    facts = page.locator(".facts")
    info = httpx.get(f"{served}/v1/info").json()
    for said in (info["model"], info["fingerprint"], "float32", "cpu", "1 of 1", "instruction following"):
        expect(facts).to_contain_text(said)
    expect(page.locator("#fingerprint")).to_have_text(info["fingerprint"][:8])
    gauge = {
        title: page.locator(".gauges li", has=page.get_by_role("heading", name=title))
        for title in ("Candidates", "Batch fill", "Reuse", "Latency")
    }
    before = gauge["Candidates"].locator(".now").inner_text()
    assert before in ("–", "0.0")
    with JRMClient(served) as client:
        client.score_group(PICTURES[0], "make it red", PICTURES[1:])
        httpx.post(f"{served}/compute", json={"prompt": ["a"], "image": ["no"], "condition_images": [["no"]]})
    expect(gauge["Candidates"].locator(".now")).not_to_have_text(before)
    for title in ("Batch fill", "Reuse"):
        expect(gauge[title].locator(".now")).to_contain_text("%")
    expect(gauge["Latency"].locator(".now")).to_contain_text("s")
    expect(page.get_by_role("table", name="Requests")).to_contain_text("wire flow-factory")
    expect(page.get_by_role("table", name="Errors")).to_contain_text("invalid_image")


def test_text_of_prometheus_is_read_as_it_is_written(open_page, served):
    page = open_page(served)
    script = r"""async () => {
      const { Reading, quantile } = await import(new URL("page/prometheus.js", location.href));
      const reading = new Reading('# HELP a "b"\na{x="1 \\"}\\\\ ",y="<b>"} 2.5\na{x="2",y=""} +Inf\nb 1e-3\n', 0);
      const histogram = (counts) => {
        const buckets = ["1", "2", "+Inf"].map((le, at) => `h_bucket{le="${le}"} ${counts[at]}\n`);
        return new Reading(`${buckets.join("")}h_count ${counts[2]}\n`, 0);
      };
      const samples = reading.all("a").map(({ labels, value }) => [labels, value === Infinity ? "inf" : value]);
      return [samples, reading.sum("b"), quantile(histogram([1, 1, 1]), histogram([1, 5, 5]), "h", 0.5)];
    }"""
    samples, small, median = page.evaluate(script)
    assert samples == [[{"x": '1 "}\\ ', "y": "<b>"}, 2.5], [{"x": "2", "y": ""}, "inf"]]
    assert small == 1e-3
    assert median == 1.5


def test_a_proxy_that_hides_the_metrics_hides_only_those(open_page, served):
    page = open_page("about:blank", refused=["404"])
    page.route("**/metrics", lambda route: route.fulfill(status=404, body="hidden"))
    page.goto(f"{served}/#status")
    expect(page.locator("#model")).to_have_text("jrm-tiny")
    expect(page.locator("#status-view .notice")).to_contain_text("No numbers from /metrics: 404")
    expect(page.locator("#banner")).to_be_hidden()


def test_a_score_that_redis_knew_is_one_that_was_known(open_page, served):
    page = open_page("about:blank")
    page.route("**/metrics", counting())
    page.goto(f"{served}/#status")
    expect(gauge(page, "Cache").locator(".now")).to_have_text("60%")


def test_a_time_without_readings_is_a_gap(open_page, served):
    page = open_page("about:blank")
    page.route("**/metrics", counting())
    page.add_init_script("""
      const real = performance.now.bind(performance);
      let hidden = 0;
      performance.now = () => real() + hidden;
      window.hide = (seconds) => { hidden += 1000 * seconds; };
    """)
    page.goto(f"{served}/#status")
    pieces = "d => d.getAttribute('d').split('M').length - 1"
    curve = gauge(page, "Cache").locator(".curve")
    expect(gauge(page, "Cache").locator(".now")).to_have_text("60%")
    assert curve.evaluate(pieces) == 1
    page.evaluate("hide(60)")
    expect(gauge(page, "Cache").locator(".now")).to_have_text("–")
    expect(gauge(page, "Cache").locator(".now")).to_have_text("60%")
    assert curve.evaluate(pieces) == 2


def gauge(page, title):
    return page.locator(".gauges li", has=page.get_by_role("heading", name=title))


def counting():
    """A server that finds two of ten scores in its memory, and four of the others in Redis, in every interval."""
    readings = itertools.count()

    def answer(route):
        n = next(readings)
        counts = {"hits": {"memory": 2 * n, "redis": 4 * n}, "misses": {"memory": 8 * n, "redis": 4 * n}}
        lines = [
            f'jrm_cache_{kind}_total{{tier="{tier}"}} {count}'
            for kind, tiers in counts.items()
            for tier, count in tiers.items()
        ]
        route.fulfill(body="\n".join(["process_start_time_seconds 1", "jrm_ready 1", *lines, ""]))

    return answer

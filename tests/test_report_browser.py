"""The report in a real browser: nothing is asked of the network, nothing breaks, the numbers are the ledger's."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from report_ledgers import LEDGERS, deep, hostile, plausible
from test_report import look_up

from abridged.report import view, write

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
DESK, PHONE = {"width": 1280, "height": 900}, {"width": 360, "height": 740}
DRAWN = """() => [...document.querySelectorAll('.canvas')].every((canvas) => canvas.querySelector('svg.main-svg'))"""
WIDTHS = "() => [document.documentElement.scrollWidth, innerWidth]"

# WCAG 2 contrast of every element that holds text itself, against the nearest background that is not transparent.
CONTRASTS = """() => {
  const parse = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const color = parse(getComputedStyle(each).backgroundColor);
      if (color.length < 4 || color[3] > 0.9) return color;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const element of document.querySelectorAll('body *')) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || element.closest('script, style, svg') || !element.getClientRects().length) continue;
    const [a, b] = [light(parse(getComputedStyle(element).color)), light(behind(element))];
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), element.tagName + '.' + element.className, element.textContent.slice(0, 40)]);
  }
  for (const text of document.querySelectorAll('.xtick text, .ytick text, .legendtext')) {
    const [a, b] = [light(parse(getComputedStyle(text).fill)), light(behind(text))];
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), 'plot', text.textContent]);
  }
  return found;
}"""


@dataclass
class Opened:
    """A page and everything it complained of or asked for."""

    page: Any
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def drawn(self) -> Any:
        self.page.wait_for_function(DRAWN, timeout=30_000)
        return self.page


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("reports")
    return {name: write(make(), folder / name) for name, make in LEDGERS.items()}


@pytest.fixture
def visit(browser: Any, reports: dict[str, Path]) -> Iterator[Any]:
    contexts = []

    def open_(name: str, **options: Any) -> Opened:
        context = browser.new_context(**{"viewport": DESK} | options)
        context.set_default_timeout(30_000)
        contexts.append(context)
        opened = Opened(context.new_page())
        opened.page.on("console", lambda message: opened.complaints.append(f"{message.type}: {message.text}"))
        opened.page.on("pageerror", lambda error: opened.complaints.append(str(error)))
        opened.page.on("request", lambda request: opened.requests.append(request.url))
        opened.page.goto(reports[name].as_uri())
        return opened

    yield open_
    for context in contexts:
        context.close()


def some(*fast: str) -> list[Any]:
    """All ledgers, and those that every run visits: a page with plots takes the browser two seconds."""
    return [pytest.param(name, marks=() if name in fast else pytest.mark.slow) for name in LEDGERS]


@pytest.mark.parametrize("name", some("plausible", "failed", "bare"))
def test_the_page_opens_in_peace(visit: Any, reports: dict[str, Path], name: str) -> None:
    opened = visit(name)
    page = opened.drawn()
    assert page.locator("svg.main-svg").count() == 0 or page.locator(".gridlayer path").count() > 0
    assert page.locator(".canvas").count() == len(view(LEDGERS[name]()).plots)
    assert opened.complaints == []
    assert [url for url in opened.requests if url != reports[name].as_uri()] == []
    assert page.locator("#verdict").inner_text().replace("\u00a0", " ") == view(LEDGERS[name]()).verdict


def test_the_numbers_are_the_ledgers(visit: Any) -> None:
    ledger, page = plausible(), visit("plausible").page
    read = "all => all.map(e => [e.dataset.key, e.dataset.value, e.innerText])"
    numbers = page.locator("[data-key][data-value]").evaluate_all(read)
    plain = [each for each in numbers if not each[0].startswith("gain.")]
    assert len(plain) > 100
    for key, value, _ in plain:
        assert float(value) == look_up(ledger, key), key
    shown = {key: float(value) for key, value, _ in numbers}
    assert shown["final.practice.onnxruntime.bytes"] == 29_870
    assert shown["gain.size.practice"] == 193_412 / 29_870
    assert shown["gain.speed.realised"] == view(ledger).speed.realised.value


def test_plots_draw_the_ledgers_numbers_and_change_on_request(visit: Any) -> None:
    opened = visit("plausible")
    page = opened.drawn()
    drawn = "e => e.data.map((trace) => trace.x)"
    canvas = page.locator("figure[data-plot=layers] .canvas")
    assert canvas.evaluate(drawn)[0] == [160, 0, 4640, 9248, 0, 32832, 650]
    page.get_by_role("group", name="Quantity").get_by_role("button", name="MACs").click()
    assert canvas.evaluate(drawn)[0] == [9216, 0, 73728, 147456, 0, 32768, 640]
    assert page.locator("button[aria-pressed=true]").inner_text() == "MACs"
    assert page.locator("figure[data-plot=curve-0] .scatterlayer .trace").count() == 4
    box = canvas.locator(".bars .point").nth(3).bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_selector(".hoverlayer .hovertext")
    assert opened.complaints == []


@pytest.mark.parametrize("name", some("plausible", "hostile", "bare"))
def test_a_phone_scrolls_down_only(visit: Any, name: str) -> None:
    opened = visit(name, viewport=PHONE, device_scale_factor=2, is_mobile=True, has_touch=True)
    page = opened.drawn()
    page.evaluate("() => document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    width, screen = page.evaluate(WIDTHS)
    assert screen == 360
    assert width <= screen
    outside = page.locator("header *, .card *, h2, figcaption, .choices *, .snippet > *").evaluate_all(
        "all => all.filter(e => e.getClientRects().length && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"
    )
    assert outside == []
    assert opened.complaints == []


@pytest.mark.parametrize(
    ("name", "scheme"), [("plausible", "light"), ("plausible", "dark"), ("bare", "light"), ("failed", "dark")]
)
def test_text_stands_out(visit: Any, name: str, scheme: str) -> None:
    page = visit(name, color_scheme=scheme).drawn()
    background = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    brightness = sum(map(int, re.findall(r"\d+", background)[:3])) / 3
    assert brightness < 50 if scheme == "dark" else brightness > 200
    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts) > 40
    assert [each for each in contrasts if each[0] < 4.5] == []


def test_copy_puts_the_code_on_the_clipboard(visit: Any) -> None:
    opened = visit("plausible", permissions=["clipboard-read", "clipboard-write"])
    button = opened.page.get_by_role("button", name="Copy: The artifact, with Abridged")
    button.click()
    opened.page.wait_for_function("() => document.querySelector('button.copy').textContent === 'Copied'")
    assert opened.page.evaluate("() => navigator.clipboard.readText()") == view(plausible()).snippets[0].code
    opened.page.wait_for_function("() => document.querySelector('button.copy').textContent === 'Copy'")
    assert opened.complaints == []


def test_copy_works_where_the_clipboard_is_refused(visit: Any) -> None:
    page = visit("plausible").page
    page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(new Error('refused')); }")
    page.locator("button.copy").first.click()
    page.wait_for_function("() => /Copied|Press/.test(document.querySelector('button.copy').textContent)")


def layer_column(page: Any, column: int) -> list[str]:
    cells: list[str] = page.locator(f"#layers-table tbody tr > :nth-child({column})").all_inner_texts()
    return cells


def test_layers_sort_by_any_column(visit: Any) -> None:
    page = visit("plausible").page
    original = layer_column(page, 1)
    head = page.locator("#layers-table thead th").nth(6)
    values = "all => all.map(e => Number(e.dataset.value))"
    macs = page.locator("#layers-table tbody tr > :nth-child(7)")
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert macs.evaluate_all(values) == sorted(macs.evaluate_all(values), reverse=True)
    head.get_by_role("button").press("Enter")  # the keyboard does it too
    assert head.get_attribute("aria-sort") == "ascending"
    assert macs.evaluate_all(values) == sorted(macs.evaluate_all(values))
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") is None
    assert layer_column(page, 1) == original
    page.locator("#layers-table thead th").nth(0).get_by_role("button").click()
    assert layer_column(page, 1)[:3] == ["(the model itself)", "conv1", "conv2"]
    page.locator("#layers-table thead th").nth(5).get_by_role("button").click()  # sparsity, which some layers lack
    assert layer_column(page, 6)[-2:] == ["–", "–"]


def test_five_hundred_layers_stay_fast(visit: Any) -> None:
    opened = visit("deep")
    page = opened.drawn()
    rows = page.locator("#layers-table tbody tr")
    assert rows.count() == len(view(deep()).layers.lines) > 500
    assert not rows.first.is_visible()  # folded
    page.locator("details.layers > summary").click()
    assert rows.first.is_visible()
    taken = page.evaluate(
        "() => { const start = performance.now(); document.querySelectorAll('#layers-table thead button')[6].click();"
        " document.body.offsetHeight; return performance.now() - start; }"
    )
    assert taken < 2000
    assert opened.complaints == []


def test_hostile_names_run_nothing(visit: Any) -> None:
    page = visit("hostile").drawn()
    assert page.evaluate("() => window.pwned") is None
    assert page.locator("h1").inner_text() == " ".join(hostile().title.split())
    assert page.locator("img").count() == 0


def test_the_policy_stops_what_escaping_would_miss(visit: Any) -> None:
    opened = visit("plausible")
    opened.page.evaluate(
        "() => { const script = document.createElement('script'); script.textContent = 'window.pwned = 1';"
        " document.body.append(script); document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=window.pwned=2>'); }"
    )
    opened.page.wait_for_timeout(200)
    assert opened.page.evaluate("() => window.pwned") is None
    assert any("Content Security Policy" in each for each in opened.complaints)


def test_the_text_needs_no_script(visit: Any) -> None:
    page = visit("plausible", java_script_enabled=False).page
    assert page.locator("#verdict").is_visible()
    assert page.locator("#layers-table tbody tr").count() == 7
    assert page.locator(".canvas .empty").first.is_visible()
    assert not page.locator("button.copy").first.is_visible()


def test_the_keyboard_reaches_everything(visit: Any) -> None:
    page = visit("plausible").drawn()
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.className") == "skip"
    for selector in (".scroll", "pre"):
        assert page.locator(f"{selector}:not([tabindex])").count() == 0
    assert page.locator(".scroll:not([aria-label])").count() == 0


def test_it_prints_light_and_whole(visit: Any) -> None:
    page = visit("plausible", color_scheme="dark").drawn()
    page.emulate_media(media="print")
    assert page.evaluate("() => getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator("nav").is_visible()
    assert page.pdf(format="A4")[:4] == b"%PDF"

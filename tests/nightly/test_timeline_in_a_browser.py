"""L3: the page of timelines in a browser: dark and light, by keyboard, on a narrow screen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_vmss.report.timeline import set_page
from pytest_vmss.settings import Settings
from pytest_vmss.simulation.guest import Behaviour
from tests.nightly.browser import Browser, browser, chromium
from tests.simulation.conftest import SimulatedLab

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(chromium() is None, reason="Chromium is not installed"),
]

#: The lowest contrast of text that is shown, by WCAG 2's formula: AA asks for 4.5.
CONTRAST = """
(() => {
  const parts = text => {
    const found = text.match(/[\\d.]+/g).map(Number);
    return found.length > 3 ? found : [...found, 1];
  };
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map(v => v / 255)
      .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const ground = one => {
    for (let at = one; at; at = at.parentElement) {
      const colour = parts(getComputedStyle(at).backgroundColor);
      if (colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  let worst = [99, ""];
  for (const one of document.querySelectorAll("body *")) {
    const own = [...one.childNodes].some(node => node.nodeType === 3 && node.data.trim());
    const box = one.getBoundingClientRect();
    if (!own || !box.width || !box.height || one.closest(".sr, .skip")) continue;
    const [a, b] = [light(parts(getComputedStyle(one).color)), light(ground(one))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < worst[0]) worst = [ratio, `${one.className} ${one.textContent.trim()}`];
  }
  return worst;
})()
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of an upgrade of which one instance failed and was rolled back."""
    folder = tmp_path_factory.mktemp("lab")
    lab = SimulatedLab.session(Settings(folder / "state", folder / "cache"))
    web = lab.start_web(5)
    lab.roll(web, "1.1.0", Behaviour.PANICS)
    written = folder / "web.html"
    written.write_text(set_page(lab, "web"))
    lab.destroy()
    return written


@pytest.fixture
def shown(page: Path, tmp_path: Path) -> Iterator[Browser]:
    with browser(tmp_path / "profile") as opened:
        opened.resize(1300, 1200)
        opened.open(page)
        yield opened


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_legible(shown: Browser, scheme: str) -> None:
    """By the system's choice of light or dark."""
    shown.prefer(scheme)
    ground = shown.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(244, 245, 247)") == (scheme == "light")
    ratio, where = shown.evaluate(CONTRAST)
    assert ratio >= 4.5, where


def test_a_failed_step_is_found_and_explained_by_keyboard(shown: Browser) -> None:
    for _ in range(40):
        shown.press("Tab")
        if shown.evaluate("document.activeElement.matches('.bar.failed')"):
            break
    else:
        raise AssertionError("no Tab reaches the step that failed")
    assert shown.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert shown.evaluate("document.querySelector(':popover-open')") is None
    shown.press("Enter")
    told = shown.evaluate("document.querySelector(':popover-open').innerText")
    assert "web_0: boot" in told
    assert "the kernel panicked" in told
    assert "Waits for a new boot" in told
    shown.press("Escape")
    assert shown.evaluate("document.querySelectorAll(':popover-open').length") == 0


def test_it_is_whole_without_scripts_and_network(shown: Browser) -> None:
    shown.call("Emulation.setScriptExecutionDisabled", value=True)
    shown.call("Page.reload")
    trouble = [
        event
        for event in shown.events
        if event.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown")
    ]
    asked = {
        event["params"]["request"]["url"].partition(":")[0]
        for event in shown.events
        if event.get("method") == "Network.requestWillBeSent"
    }
    assert trouble == []
    assert asked <= {"file", "about"}


@pytest.mark.parametrize("width", [360, 800, 1300, 2400])
def test_it_fits_screens_of_any_width(shown: Browser, width: int) -> None:
    """What is wider scrolls in a region of its own."""
    shown.resize(width, 900)
    assert shown.evaluate("document.documentElement.scrollWidth") <= width
    boxes = shown.evaluate(
        "[...document.querySelectorAll('.bar')].map(one => one.getBoundingClientRect())"
        ".filter(box => box.width).every(box => box.width >= 3)"
    )
    assert boxes


def test_nothing_covers_or_leaves_its_place(shown: Browser) -> None:
    """States at the very end stay in the chart; an outcome does not lie on the names of lanes."""
    out = shown.evaluate(
        "[...document.querySelectorAll('.lane')].flatMap(lane => [...lane.children]"
        ".filter(one => one.getBoundingClientRect().right > lane.getBoundingClientRect().right + 1)"
        ".map(one => one.title))"
    )
    assert out == []
    gaps = shown.evaluate(
        "[...document.querySelectorAll('.instance .head')].map(head =>"
        " head.querySelector('.lanes span').getBoundingClientRect().top"
        " - head.querySelector('.chip').getBoundingClientRect().bottom)"
    )
    assert len(gaps) > 5
    assert min(gap for gap in gaps if gap) >= 0

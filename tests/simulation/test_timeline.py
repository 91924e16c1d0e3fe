"""L3, J4: the page of timelines says what happened to which instance, and why it stopped."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from datetime import timedelta
from html.parser import HTMLParser
from typing import Any

import pytest

from pytest_vmss import steps
from pytest_vmss.api.scale_set import ScaleSet
from pytest_vmss.errors import InterruptedOperationError, UpgradeError
from pytest_vmss.guest.boot_facts import BootFacts
from pytest_vmss.report.timeline import Timeline, set_page, set_timelines
from pytest_vmss.report.timeline.records import BarState
from pytest_vmss.report.timeline.words import headline, why_it_stopped
from pytest_vmss.simulation.clock import VirtualClock
from pytest_vmss.simulation.guest import Behaviour, SimulatedGuest
from pytest_vmss.store import Outcome
from tests.simulation.conftest import SimulatedLab
from tests.simulation.kills import Killed
from tests.simulation.test_resume import kill_at


class Page(HTMLParser):
    """What a page consists of, as a browser would read it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._hidden = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._hidden += tag == "style"

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag == "style"

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.text += data

    def values(self, name: str) -> list[str]:
        return [
            value for _, given in self.tags for key, value in given.items() if key == name and value
        ]


def last(lab: SimulatedLab) -> Timeline:
    return set_timelines(lab, "web")[-1]


def page_of(lab: SimulatedLab) -> Page:
    return Page(set_page(lab, "web"))


def test_a_clock_that_is_set_back_gives_no_times_that_cannot_be(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Q2: neither less than nothing, nor none at all."""
    web = lab.start_web(1, automatic=False)
    lab.publish("1.1.0")
    shift, real, boot = timedelta(0), VirtualClock.now, SimulatedGuest.wait_boot
    monkeypatch.setattr(VirtualClock, "now", lambda self: real(self) + shift)

    def set_back(self: SimulatedGuest, known: str | None) -> BootFacts:
        nonlocal shift
        shift = timedelta(hours=-5)
        return boot(self, known)

    monkeypatch.setattr(SimulatedGuest, "wait_boot", set_back)
    upgrade = web.upgrade()
    unknown = "an unknown time (the clock was set back)"
    assert headline(last(lab)) == (
        f"OS upgrade of web from 1.0.0 to 1.1.0 completed in {unknown}: 1 of 1 instance succeeded."
    )
    page = page_of(lab).text
    assert unknown in page
    assert not re.search(r"-\d+(\.\d)? (s|h|min)", page)
    assert "boot" not in upgrade.stages["web_0"]
    assert min(upgrade.stages["web_0"].values()) >= 0


def test_a_failed_upgrade_says_who_failed_at_which_step_and_why_it_stopped(
    lab: SimulatedLab,
) -> None:
    """G1, D7."""
    web = lab.start_web()
    lab.roll(web, "1.1.0", Behaviour.PANICS)
    timeline = last(lab)
    assert headline(timeline) == (
        "OS upgrade of web from 1.0.0 to 1.1.0 failed after 1 min 01 s: web_0 failed at “boot” and "
        "was rolled back."
    )
    first, *others = timeline.rows
    failed = [bar for bar in first.bars if bar.state is BarState.FAILED]
    assert [(bar.phase, bar.name, bar.error) for bar in failed] == [
        ("swap", "boot", "the kernel panicked")
    ]
    assert [bar.name for bar in first.bars if bar.goes_back][-1] == "undrain"
    assert all(not row.bars and row.outcome is Outcome.NOT_STARTED for row in others)
    assert any("MaxUnhealthyUpgraded" in line for line in why_it_stopped(timeline))
    assert "web_1 and web_2 were not touched." in why_it_stopped(timeline)
    text = page_of(lab).text
    assert "Failed at the step “boot” in batch 1" in text
    assert "Kernel panic - not syncing" in text
    assert failed[0].console == ("Kernel panic - not syncing: Attempted to kill init!",)


def test_batches_health_and_traffic_are_beneath_the_steps(lab: SimulatedLab) -> None:
    """J4, E1."""
    web = lab.start_web(5)
    assert lab.roll(web, "1.1.0").completed
    timeline = last(lab)
    assert [batch.names for batch in timeline.batches] == [(f"web_{n}",) for n in range(5)]
    for earlier, later in zip(timeline.batches, timeline.batches[1:], strict=False):
        assert earlier.start < earlier.end <= later.start
    third = timeline.rows[2]
    batch = timeline.batches[2]
    assert all(batch.start <= bar.start <= bar.end <= batch.end for bar in third.bars)
    health = [span.state for span in third.health]
    traffic = [span.state for span in third.traffic]
    assert (health[0], health[-2], health[-1]) == ("Healthy", "coming up", "Healthy")
    assert traffic == ["in service", "out of service", "in service"]


def test_an_interruption_is_shown_with_what_was_cut_off(
    lab: SimulatedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """M1, Q1: the journal forgets the try that was cut off; the events do not."""
    web = lab.start_web()
    lab.publish("1.1.0")
    with monkeypatch.context() as patch:
        kill_at(patch, steps.ProveBoot, "after", 2)
        with contextlib.suppress(Killed):
            lab.run_due()
    before = last(lab)
    assert "is interrupted and unfinished" in headline(before)
    assert any(line.startswith("To go on: vmss") for line in why_it_stopped(before))
    lab.virtual.sleep(4000)
    assert web.resume()
    timeline = last(lab)
    (one,) = timeline.interruptions
    assert one.resumed
    assert one.end - one.start >= timedelta(seconds=4000)
    boots = [bar for bar in timeline.rows[1].bars if bar.name == "boot"]
    assert [(bar.state, bar.again) for bar in boots] == [
        (BarState.CUT_OFF, False),
        (BarState.DONE, True),
    ]
    assert boots[0].end <= one.start
    assert boots[1].start >= one.end
    page = page_of(lab)
    assert "resumed 1 h 07 min later" in re.sub(r"\s+", " ", page.text)
    assert any("in which nothing happened, cut short" in title for title in page.values("title"))


def test_faults_are_marked_at_their_instance(lab: SimulatedLab) -> None:
    web = lab.start_web(1)
    lab.publish("1.1.0")
    real = lab.simulated.start

    def start(machine: Any) -> None:
        real(machine)
        web[0].faults.kill()

    lab.simulated.start = start  # type: ignore[method-assign]
    with contextlib.suppress(UpgradeError, InterruptedOperationError):
        lab.run_due()
    marks = last(lab).rows[0].marks
    assert ("fault", "killed: its power is cut") in [(mark.kind, mark.text) for mark in marks]


def test_the_page_needs_nothing_else_and_runs_nothing(lab: SimulatedLab) -> None:
    """L3: opened from a disk, without a network, years later."""
    web = lab.start_web()
    lab.roll(web, "1.1.0", Behaviour.UNHEALTHY)
    page = page_of(lab)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object"}
    assert not page.values("src")
    assert {link[0] for link in page.values("href")} == {"#"}
    assert not [key for _, given in page.tags for key in given if key.startswith("on")]
    assert "url(" not in set_page(lab, "web")


def test_the_page_works_by_keyboard(lab: SimulatedLab) -> None:
    """Every bar is a button that opens its explanation, which is there and can be closed."""
    web = lab.start_web()
    lab.roll(web, "1.1.0", Behaviour.PANICS)
    page = page_of(lab)
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    targets = page.values("popovertarget")
    assert targets
    assert set(targets) <= set(ids)
    assert {tag for tag, given in page.tags if "popovertarget" in given} == {"button"}
    assert {"main", "nav", "header", "footer"} <= {tag for tag, _ in page.tags}
    assert {link[1:] for link in page.values("href")} <= set(ids)
    bars = sum(len(row.bars) for timeline in set_timelines(lab, "web") for row in timeline.rows)
    buttons = [given for tag, given in page.tags if tag == "button"]
    assert sum(str(given["class"]).startswith("bar ") for given in buttons) == bars


@pytest.mark.parametrize(
    "said",
    [
        "<script>alert(1)</script>",
        "\"'><img src=x onerror=alert(1)>",
        "\x1b[31mred\x1b]0;title\x07",
        "{{ 7 * 7 }}{% raw %}",
        "\u202eevil",
    ],
)
def test_what_guests_say_stays_text(lab: SimulatedLab, said: str) -> None:
    """R2."""
    web = lab.start_web()
    lab.roll(web, "1.1.0", Behaviour.PANICS)
    record = set_timelines(lab, "web")[-1].record
    lab.store.event("web", "warning", said, instance_id=1, operation=record.id)
    written = set_page(lab, "web")
    page = Page(written)
    assert "script" not in {tag for tag, _ in page.tags}
    assert "img" not in {tag for tag, _ in page.tags}
    assert not {"\x1b", "\x07", "\u202e"} & set(written)
    if "{{" in said or "<" in said:
        assert said in page.text


def test_secrets_are_masked(lab: SimulatedLab) -> None:
    """M5."""
    web = lab.start_web(1)
    lab.roll(web, "1.1.0")
    record = set_timelines(lab, "web")[-1].record
    lab.store.event(
        "web", "warning", "curl --token hunter2-hunter2", instance_id=0, operation=record.id
    )
    assert "hunter2" not in set_page(lab, "web")


def test_lines_of_the_console_stand_with_the_step_of_their_time(lab: SimulatedLab) -> None:
    """By the kernel's stamps, counted from the start of the machine; a secret is masked."""
    web = lab.start_web(1)
    lab.roll(web, "1.1.0")
    generation = web[0].generation
    path = lab.paths.console("web", 0, generation.number)
    path.write_text(
        "firmware\n[    1.5] Linux version 6.1\nno stamp\n"
        "[   31.0] cloud-init[300]: password=hunter2hunter2\n[ 9999.0] later\n"
    )
    (row,) = last(lab).rows
    lines = {bar.name: bar.console for bar in row.bars}
    assert lines["boot"] == ("[    1.5] Linux version 6.1", "no stamp")
    assert lines["cloud-init"] == ("[   31.0] cloud-init[300]: password=***",)
    assert "later" not in str(lines)


@pytest.mark.parametrize(
    "act",
    [
        lambda web: web.restart(),
        lambda web: web.scale(4),
        lambda web: web.scale(1),
        lambda web: web.reimage([0]),
        lambda web: web.delete_instances([1]),
    ],
)
def test_every_kind_of_operation_has_a_page(
    lab: SimulatedLab, act: Callable[[ScaleSet], object]
) -> None:
    web = lab.start_web()
    act(web)
    assert "Completed" in page_of(lab).text


def test_the_page_of_a_deleted_set_is_still_made(lab: SimulatedLab) -> None:
    web = lab.start_web()
    lab.roll(web, "1.1.0")
    lab.delete("web")
    assert "OS upgrade of web from 1.0.0 to 1.1.0 completed" in page_of(lab).text

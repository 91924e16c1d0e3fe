"""``vmss demo``: the main workflow, shown and checked on real VMs."""

from __future__ import annotations

import contextlib
import http.client
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

from rich.console import Console
from rich.text import Text

from pytest_vmss.api.instance import Instance
from pytest_vmss.api.lab import Lab
from pytest_vmss.api.operation import Upgrade
from pytest_vmss.api.scale_set import ScaleSet
from pytest_vmss.errors import ViolationError, VmssError
from pytest_vmss.host.accelerator import choose_accelerator
from pytest_vmss.host.qemu_account import choose_account
from pytest_vmss.host.shipped import shipped
from pytest_vmss.image_builder import ImageBuilder
from pytest_vmss.report import LiveView, instance_table, plain, say, stage_table, upgrade_summary
from pytest_vmss.settings import Settings
from pytest_vmss.store import Outcome

__all__ = ["example", "run_demo"]

_HEALTH_TIMEOUT = 20.0
_USER_TIMEOUT_S = 10.0
_USER_EVERY_S = 0.1
_BREACH = "MaxUnhealthyUpgradedInstancePercentExceededInRollingUpgrade"


def example(name: str) -> Path:
    """Returns the path of a file of the bundled example.

    Raises:
        NotFoundError: The installation is incomplete.
    """
    return shipped(f"examples/web/{name}")


class _Claims:
    """Prints each claim with its evidence, and remembers whether any failed."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self.failed = 0

    def check(self, claim: str, holds: bool, evidence: object) -> None:
        mark = plain("✓", "green") if holds else plain("✗", "bold red")
        say(self._console, "  ", mark, f" {claim}")
        if not holds:
            self.failed += 1
            say(self._console, f"      got: {evidence}", style="red")


def run_demo(settings: Settings, console: Console) -> bool:
    """Runs the demo in a lab of its own, which is removed afterwards.

    Args:
        settings: Where to keep files and how to run VMs.
        console: Where to print.

    Returns:
        Whether all its claims held.
    """
    start = time.monotonic()
    stages: list[tuple[str, float]] = []

    def stage(title: str) -> None:
        console.rule(Text(title, style="bold"), align="left")
        stages.append((title, time.monotonic()))

    account = choose_account(settings.state_dir)
    choice = choose_accelerator(settings.accelerator, account.account)
    say(console, f"accelerator: {choice.accelerator}, since {choice.reason}")
    if account.reason:
        say(console, f"QEMU runs as root, since {account.reason}", style="yellow")
    claims = _Claims(console)
    stage("Images: 1.0.0, 1.1.0 (newer application and kernel), 1.2.0 (broken application)")
    builder = ImageBuilder.named(
        "web", settings.cache_dir, say=lambda text: say(console, f"  {text} …")
    )
    disks = {version: builder.build(version).path for version in ("1.0.0", "1.1.0", "1.2.0")}
    lab = Lab.session(settings)
    try:
        _play(lab, disks, console, claims, stage)
    except VmssError as error:
        say(console, str(error), style="red")
        claims.failed += 1
    finally:
        stage("Clean up")
        lab.destroy()
    end = time.monotonic()
    console.rule(Text("How long it took", style="bold"), align="left")
    moments = [*(moment for _, moment in stages), end]
    for (title, moment), following in zip(stages, moments[1:], strict=True):
        say(console, f"  {following - moment:6.1f} s  {title}")
    say(console, f"  {end - start:6.1f} s  in all")
    if claims.failed:
        console.print(f"{claims.failed} claims did not hold", style="bold red")
    else:
        console.print("Everything held.", style="bold green")
    return claims.failed == 0


def _play(
    lab: Lab,
    disks: dict[str, Path],
    console: Console,
    claims: _Claims,
    stage: Callable[[str], None],
) -> None:
    gallery = lab.gallery()
    stage("Three instances of 1.0.0, each with a data disk at LUN 0")
    gallery.publish("web", "1.0.0", disks["1.0.0"])
    with LiveView.of(lab, console):
        web = lab.create(
            example("template.yaml"),
            capacity=3,
            custom_data=example("custom-data.yaml"),
            health_timeout=_HEALTH_TIMEOUT,
        )
    console.print(instance_table(web))
    for instance in web:
        order = instance.host.check_output("redis-cli set order:%s paid", instance.instance_id)
        claims.check(f"{instance.name}: Redis on the data disk took an order", order == "OK", order)
    before = {instance.name: (instance.boot_id, instance.kernel) for instance in web}
    lab.watch()

    stage("Publish 1.1.0: it rolls through the set by itself, one instance at a time")
    with LiveView.of(lab, console), _users(web, claims):
        gallery.publish("web", "1.1.0", disks["1.1.0"])
        upgrade = web.wait_for_upgrade()
    _show(lab, console, upgrade, web)
    claims.check("the upgrade completed", upgrade.completed, upgrade.explain())
    claims.check("in three batches", upgrade.batches == [(0,), (1,), (2,)], upgrade.batches)
    for instance in web:
        _check_upgraded(claims, instance, before[instance.name])

    stage("Publish 1.2.0, whose application does not come up")
    previous = web[0].os_disk
    identity = previous.stat().st_ino
    boots = {instance.name: instance.boot_id for instance in web}
    with LiveView.of(lab, console), _users(web, claims):
        gallery.publish("web", "1.2.0", disks["1.2.0"])
        upgrade = web.wait_for_upgrade()
    _show(lab, console, upgrade, web)
    error = upgrade.error
    claims.check("the upgrade ended Faulted", upgrade.faulted, upgrade.status)
    claims.check(
        f"with {_BREACH}", error is not None and error.code == _BREACH, error and error.code
    )
    claims.check(
        "web_0 failed its health check and was rolled back",
        upgrade.outcomes["web_0"] is Outcome.ROLLED_BACK
        and upgrade.errors["web_0"].code == "InstanceUnhealthy",
        upgrade.explain(),
    )
    claims.check(
        "onto the same previous OS disk file",
        web[0].os_disk == previous and previous.stat().st_ino == identity,
        web[0].os_disk,
    )
    claims.check("all three are healthy", web.is_healthy(), [i.health() for i in web])
    for instance in web:
        _check_data(claims, instance)
        if instance.name != "web_0":
            boot = instance.host.check_output("cat /proc/sys/kernel/random/boot_id")
            claims.check(f"{instance.name} was never touched", boot == boots[instance.name], boot)


@contextlib.contextmanager
def _users(web: ScaleSet, claims: _Claims) -> Iterator[None]:
    """Sends requests as users would, and checks at the end that none failed."""
    place = urlsplit(web.url).netloc

    def served() -> bool:
        link = http.client.HTTPConnection(place, timeout=_USER_TIMEOUT_S)
        try:
            link.request("GET", "/version", headers={"Connection": "close"})
            return link.getresponse().status == http.client.OK
        finally:
            link.close()

    watched = web.always(served, every=_USER_EVERY_S)
    try:
        with watched:
            yield
    except ViolationError as error:
        claims.check("users noticed nothing", False, error.message)
    else:
        claims.check(
            f"users noticed nothing: {watched.checks} requests to the load balancer, none failed, "
            f"the slowest took {watched.slowest:.2f} s",
            True,
            "",
        )


def _show(lab: Lab, console: Console, upgrade: Upgrade, web: ScaleSet) -> None:
    console.print(upgrade_summary(upgrade.report))
    console.print(stage_table(upgrade.record, lab.store.steps(upgrade.id)))
    console.print(instance_table(web))


def _check_upgraded(
    claims: _Claims, instance: Instance, before: tuple[str | None, str | None]
) -> None:
    boot_id, kernel = before
    host = instance.host
    release = host.check_output(". /etc/os-release; echo $IMAGE_VERSION")
    claims.check(f"{instance.name}: the guest says it is 1.1.0", release == "1.1.0", release)
    found = host.check_output("cat /proc/sys/kernel/random/boot_id")
    claims.check(f"{instance.name}: a new boot id", found != boot_id, found)
    found = host.check_output("uname -r")
    claims.check(f"{instance.name}: a new kernel, {found}", found != kernel, found)
    served = host.check_output("curl -sf http://localhost/version")
    claims.check(f"{instance.name}: a newer application", '"1.1.0"' in served, served)
    identity = instance.generation.cloud_instance_id
    for what, path in (("custom data", "custom-data-runs"), ("the extension", "extension-runs")):
        runs = host.check_output(f"cat /data/{path}").splitlines()
        mine = [run for run in runs if run.split()[-1] == identity]
        claims.check(
            f"{instance.name}: {what} ran once for this OS disk, and once for the one before",
            len(mine) == 1 and len(runs) == 2,
            runs,
        )
    _check_data(claims, instance)


def _check_data(claims: _Claims, instance: Instance) -> None:
    answer = instance.host.run("redis-cli get order:%s", instance.instance_id).stdout.strip()
    claims.check(f"{instance.name}: Redis still has its order", answer == "paid", answer)

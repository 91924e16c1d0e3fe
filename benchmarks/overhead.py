"""``python -m benchmarks.overhead``: what the product adds to one OS-disk swap.

The same swap, from a running healthy guest of 1.0.0 to a healthy guest of
1.1.0 on a new overlay with the data disk kept, is done by the product and by a
bare script of qemu-img, QEMU, ssh and the sockets of QEMU's monitor and of the
guest agent. The script waits as cleverly as the product does: QEMU tells it when
the agent has come up, before that it does not try SSH; one SSH connection waits
for cloud-init in the guest and runs the extension's command; the application is
asked as often, and is healthy by as many answers. Who goes first alternates from
round to round, for the host's caches and clocks drift. The ratio of the wall
times is taken in each round, and the medians are printed.

:mod:`benchmarks.overhead_azure` does the same with an image made for Azure.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import http.client
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

from pytest_vmss.api.lab import Lab
from pytest_vmss.cli.demo import example
from pytest_vmss.guest.keys import KeyPair, generate, lab_key
from pytest_vmss.guest.seed import build_seed
from pytest_vmss.hypervisor.disks import write_seed
from pytest_vmss.image_builder import ImageBuilder
from pytest_vmss.model import load_document
from pytest_vmss.settings import Settings

_ADDRESS = "127.63.0.1"
_SSH, _HTTP = 10022, 10080
FORWARDS = f"hostfwd=tcp:{_ADDRESS}:{_SSH}-:22,hostfwd=tcp:{_ADDRESS}:{_HTTP}-:80"
MAC = "52:54:00:00:00:63"
LIMIT = 900.0
_AGENT = "org.qemu.guest_agent.0"
_AGENT_ID = "agent0"
#: As the product: seconds between two tries, and answers that make an application healthy.
INTERVAL_S = 0.2
_THRESHOLD = 2

_REMOTE = """\
while [ ! -s /run/cloud-init/result.json ]; do sleep 0.25; done
cat /proc/sys/kernel/random/boot_id; uname -r; cat /run/cloud-init/result.json
echo $(hostname) $(cat /var/lib/cloud/data/instance-id) | sudo -n tee -a /data/extension-runs
"""


@dataclass
class Bare:
    """One VM, run by nothing but commands."""

    folder: Path
    accelerator: str
    vcpus: int
    key: KeyPair
    qemu: subprocess.Popen[bytes] | None = None
    generation: int = 0
    #: How OpenSSH takes the guest's key.
    host_key: ClassVar[str] = "yes"

    def prepare(self, image: Path) -> None:
        """A new overlay and a new seed."""
        self.overlay(image)
        host_key = generate("bare")
        document = load_document(example("template.yaml"), custom_data=custom_data())
        seed = build_seed(
            document.model,
            cloud_instance_id=f"bare-{self.generation}",
            computer_name="bare000000",
            mac=MAC,
            host_key=host_key,
            lab_key=self.key,
            grow=False,
        )
        write_seed(self.folder / f"seed-{self.generation}.iso", seed)
        known = f"[{_ADDRESS}]:{_SSH} {host_key.public}\n"
        (self.folder / "known_hosts").write_text(known)

    def overlay(self, image: Path) -> None:
        """A new overlay on an image."""
        self.generation += 1
        overlay = self.folder / f"os-{self.generation}.qcow2"
        subprocess.run(
            ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", image, overlay],
            check=True,
        )

    def close(self) -> None:
        """Ends what it started besides QEMU."""

    def start(self) -> None:
        """QEMU, with the arguments that libvirt gives it."""
        self.qemu = subprocess.Popen(self.arguments(), stdin=subprocess.DEVNULL)

    def arguments(self) -> list[str | Path]:
        """QEMU's command line."""
        return [*self.machine(), *self.channels()]

    def machine(self) -> list[str | Path]:
        """QEMU with disks, console and monitor."""
        disks = ("os", f"os-{self.generation}.qcow2", "qcow2"), ("lun0", "lun0.qcow2", "qcow2")
        argv: list[str | Path] = ["qemu-system-x86_64", "-machine", "pc,graphics=off"]
        argv += ["-m", "1024", "-smp", str(self.vcpus)]  # as the model's size
        if self.accelerator == "kvm":
            argv += ["-accel", "kvm", "-cpu", "host"]
        else:
            argv += ["-accel", "tcg,tb-size=128", "-cpu", "qemu64"]
        argv += ["-display", "none", "-nodefaults", "-serial", f"file:{self.folder}/console.log"]
        for number, (serial, name, kind) in enumerate(disks):
            argv += [
                "-drive", f"file={self.folder}/{name},if=none,id=d{number},format={kind},discard=unmap",
                "-device", f"virtio-blk-pci,drive=d{number},serial={serial},bootindex={number}",
            ]  # fmt: skip
        return [
            *argv,
            "-device", f"virtio-net-pci,netdev=n,mac={MAC},romfile=",
            "-object", "rng-random,filename=/dev/urandom,id=r", "-device", "virtio-rng-pci,rng=r",
            "-qmp", f"unix:{self.folder}/monitor,server=on,wait=off",
        ]  # fmt: skip

    def channels(self) -> list[str | Path]:
        """The seed, the user network, and the guest agent's channel."""
        return [
            "-drive",
            f"file={self.folder}/seed-{self.generation}.iso,if=none,id=s,format=raw,readonly=on",
            "-device", "virtio-blk-pci,drive=s",
            "-netdev", f"user,id=n,{FORWARDS}",
            "-chardev", f"socket,path={self.folder}/agent,server=on,wait=off,id=a",
            "-device", "virtio-serial",
            "-device", f"virtserialport,chardev=a,name={_AGENT},id={_AGENT_ID}",
        ]  # fmt: skip

    def stop(self) -> None:
        """Asks the guest agent, and waits for QEMU to end."""
        assert self.qemu is not None
        with socket.socket(socket.AF_UNIX) as agent:
            agent.connect(f"{self.folder}/agent")
            agent.sendall(json.dumps({"execute": "guest-shutdown"}).encode() + b"\n")
            self.qemu.wait(LIMIT)

    def wait(self) -> None:
        """Until SSH, cloud-init, the extension's command and the application are done."""
        deadline = time.monotonic() + LIMIT
        argv = [
            "ssh", "-i", str(self.folder / "id"), "-p", str(_SSH),
            "-o", f"StrictHostKeyChecking={self.host_key}", "-o", f"UserKnownHostsFile={self.folder}/known_hosts",
            "-o", "IdentitiesOnly=yes", "-o", "LogLevel=ERROR", "-o", "ConnectTimeout=2",
            f"azureuser@{_ADDRESS}", _REMOTE,
        ]  # fmt: skip
        self.await_guest(deadline)
        while subprocess.run(argv, capture_output=True, timeout=LIMIT, check=False).returncode:
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {LIMIT:.0f} s for the bare guest, in vain")
            time.sleep(INTERVAL_S)
        healthy = 0
        while healthy < _THRESHOLD:
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {LIMIT:.0f} s for the application, in vain")
            healthy = healthy + 1 if _healthy() else 0
            if healthy < _THRESHOLD:
                time.sleep(INTERVAL_S)

    def await_guest(self, deadline: float) -> None:
        """Until QEMU's monitor tells that the guest agent has opened its channel.

        It tells so when it happens. What happened before is not asked for: QEMU has
        only just been started.
        """
        with socket.socket(socket.AF_UNIX) as monitor:
            while monitor.connect_ex(f"{self.folder}/monitor") != 0:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"waited {LIMIT:.0f} s for QEMU's monitor, in vain")
                time.sleep(0.005)
            monitor.settimeout(max(deadline - time.monotonic(), 0.1))
            monitor.sendall(b'{"execute": "qmp_capabilities"}\n')
            with monitor.makefile() as lines:
                for line in lines:
                    told = json.loads(line)
                    data = told.get("data", {})
                    if (told.get("event"), data.get("id")) == ("VSERPORT_CHANGE", _AGENT_ID):
                        return
        raise RuntimeError("QEMU ended while the bare guest booted")


Make = Callable[[Path, str, int, KeyPair], Bare]
#: Of the example's size.
_VCPUS = 2


def _healthy() -> bool:
    connection = http.client.HTTPConnection(_ADDRESS, _HTTP, timeout=5)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def custom_data() -> str:
    """The example's custom data, in base64."""
    return base64.b64encode(example("custom-data.yaml").read_bytes()).decode()


def machine_of_the_product() -> tuple[str, int]:
    """The accelerator, and how many virtual CPUs the product gives a guest on this host (A3)."""
    lab = Lab.session(Settings())
    try:
        most = lab.hypervisor.most_vcpus
        return lab.hypervisor.accelerator, min(_VCPUS, most or _VCPUS)
    finally:
        lab.destroy()


def by_bare_script(images: dict[str, Path], accelerator: str, vcpus: int, make: Make) -> float:
    """Seconds of one swap by the bare script."""
    with tempfile.TemporaryDirectory(prefix="bare-") as name:
        folder = Path(name)
        bare = make(folder, accelerator, vcpus, lab_key(folder / "id"))
        subprocess.run(
            ["qemu-img", "create", "-q", "-f", "qcow2", folder / "lun0.qcow2", "1G"], check=True
        )
        bare.prepare(images["1.0.0"])
        bare.start()
        try:
            bare.wait()
            start = time.monotonic()
            bare.prepare(images["1.1.0"])
            bare.stop()
            bare.start()
            bare.wait()
            return time.monotonic() - start
        finally:
            if bare.qemu is not None:
                with contextlib.suppress(ProcessLookupError):
                    bare.qemu.kill()
                bare.qemu.wait()
            bare.close()


def by_product(images: dict[str, Path], provisioning: str) -> float:
    """Seconds of one swap by the product: a whole upgrade of a set of one."""
    lab = Lab.session(Settings())
    try:
        lab.gallery().publish("web", "1.0.0", images["1.0.0"], provisioning=provisioning)
        web = lab.create(example("template.yaml"), capacity=1, custom_data=custom_data())
        lab.gallery().publish("web", "1.1.0", images["1.1.0"])
        start = time.monotonic()
        lab.run_due()
        taken = time.monotonic() - start
        (upgrade,) = web.history()
        if not upgrade.completed:
            raise SystemExit(upgrade.explain())
        return taken
    finally:
        lab.destroy()


def order(number: int) -> tuple[str, str]:
    """Who goes first in a round, counted from 0: bare, product, product, bare, …."""
    return ("bare", "product") if number % 2 == 0 else ("product", "bare")


def summary(rounds: Sequence[Mapping[str, float]]) -> str:
    """The medians of the rounds' seconds and of their ratios."""
    ratios = [seconds["product"] / seconds["bare"] for seconds in rounds]
    bare, product = (
        statistics.median(seconds[which] for seconds in rounds) for which in ("bare", "product")
    )
    return (
        f"rounds={len(rounds)} bare={bare:.1f}s product={product:.1f}s "
        f"ratio_of_medians={product / bare:.3f} median_ratio={statistics.median(ratios):.3f} "
        f"ratios={min(ratios):.3f}..{max(ratios):.3f}"
    )


def main() -> None:
    """Compares them for an image that reads a NoCloud disk."""
    compare("web", Bare, "NoCloud")


def compare(image: str, make: Make, provisioning: str) -> None:
    """Runs both in turn and prints the ratios.

    Args:
        image: The image's recipe.
        make: Makes what the bare script does.
        provisioning: Where the image looks for what it is to be.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--rounds", type=int, default=4, help="swaps by each; an even number is fair (default 4)"
    )
    rounds = parser.parse_args().rounds
    settings = Settings()
    builder = ImageBuilder.named(
        image, settings.cache_dir, say=lambda text: print(text, file=sys.stderr)
    )
    images = {version: builder.build(version).path for version in ("1.0.0", "1.1.0")}
    accelerator, vcpus = machine_of_the_product()
    swaps = {
        "bare": partial(by_bare_script, images, accelerator, vcpus, make),
        "product": partial(by_product, images, provisioning),
    }
    taken: list[dict[str, float]] = []
    for number in range(rounds):
        seconds = {which: swaps[which]() for which in order(number)}
        taken.append(seconds)
        told = ", ".join(f"{which} {took:.1f} s" for which, took in seconds.items())
        ratio = seconds["product"] / seconds["bare"]
        print(f"round {number + 1}: {told}, ratio {ratio:.3f}", flush=True)
    print(f"accelerator={accelerator} vcpus={vcpus} {summary(taken)} (the aim is 1.05 or less)")


if __name__ == "__main__":
    main()

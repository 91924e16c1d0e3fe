"""The ``vmss`` command, each call a process of its own, as tests of real VMs use it."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path


class Command:
    """The ``vmss`` command with a state directory of its own.

    Args:
        state: The state directory.
        program: The command, with arguments that go first; the one beside this interpreter
            otherwise.
        environment: Replaces this process's.
        user: Number of the user to run as.
    """

    def __init__(
        self,
        state: Path,
        *,
        program: Path | Sequence[str | Path] | None = None,
        environment: dict[str, str] | None = None,
        user: int | None = None,
    ) -> None:
        self.state = state
        program = program or Path(sys.executable).parent / "vmss"
        self._program = [program] if isinstance(program, Path) else [*program]
        base = dict(os.environ) if environment is None else environment
        self._environment = {**base, "VMSS_STATE_DIR": str(state), "COLUMNS": "200"}
        self._user = user

    def __call__(self, *arguments: str | Path, ok: bool = True) -> subprocess.CompletedProcess[str]:
        with self._popen(arguments, stderr=subprocess.PIPE) as process:
            try:
                output, errors = process.communicate(timeout=600)
            except BaseException:
                process.kill()
                raise
        done = subprocess.CompletedProcess(process.args, process.returncode, output, errors)
        if ok:
            assert done.returncode == 0, done.stdout + done.stderr
        return done

    def start(self, *arguments: str | Path) -> subprocess.Popen[str]:
        """Starts the command and does not wait for its end."""
        return self._popen(arguments, stderr=subprocess.STDOUT)

    def _popen(self, arguments: Sequence[str | Path], *, stderr: int) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self._program, *arguments],
            cwd="/",
            env=self._environment,
            user=self._user,
            group=self._user,
            extra_groups=None if self._user is None else [],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )

    def events(self) -> list[str]:
        """The messages of all events so far."""
        uri = f"file:{self.state}/labs/default/vmss.db?mode=ro"
        with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=30)) as database:
            return [row[0] for row in database.execute("SELECT message FROM event ORDER BY id")]

    @contextlib.contextmanager
    def until(
        self, event: str, *arguments: str | Path, times: int = 1, timeout: float = 300.0
    ) -> Iterator[subprocess.Popen[str]]:
        """Starts the command, and hands it over once it has written an event so many times.

        It is killed at the end, where it has not ended by itself.
        """

        def seen() -> bool:
            return self.events()[before:].count(event) >= times

        before = len(self.events())
        process = self.start(*arguments)
        try:
            deadline = time.monotonic() + timeout
            while not seen():
                ended = process.poll() is not None and not seen()
                assert not ended, process.communicate()[0]
                assert time.monotonic() < deadline, f"waited {timeout} s for {event!r}, in vain"
                time.sleep(0.05)
            yield process
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()

    def killed_at(
        self, event: str, *arguments: str | Path, times: int = 1, after: float = 0.0
    ) -> None:
        """Kills the command by SIGKILL once it has written an event.

        Args:
            event: The event's message.
            arguments: The command.
            times: How many times it must have written it, for as many instances.
            after: Seconds from then on.
        """
        with self.until(event, *arguments, times=times) as process:
            time.sleep(after)
            assert process.poll() is None, f"it ended before it was killed: {process.stdout}"

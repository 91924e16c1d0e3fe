"""The exceptions that pytest-vmss raises, and helpers that classify and format them.

All derive from :class:`VmssError`; the concrete classes carry fields that a test or a report
can use. A message says what happened, what was expected and what to do about it.
"""

from __future__ import annotations

import contextlib
import errno
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_vmss.untrusted import clean

__all__ = [
    "BalancerError",
    "BootError",
    "CapacityError",
    "CheckpointError",
    "CloudInitError",
    "ConflictError",
    "ExtensionError",
    "GuestCommandError",
    "GuestUnreachableError",
    "HostError",
    "HypervisorError",
    "ImageError",
    "InstanceError",
    "InterruptedOperationError",
    "KernelPanicError",
    "LabError",
    "ModelError",
    "ModelProblem",
    "NoBootError",
    "NotFoundError",
    "NotModelledWarning",
    "NotProvisionedError",
    "ProvisioningError",
    "ToolError",
    "UnhealthyError",
    "UpgradeError",
    "ViolationError",
    "VmssError",
    "WaitTimeoutError",
    "error_summary",
    "error_text",
    "is_host_trouble",
    "is_out_of_threads",
    "is_verdict",
    "mask_error",
]


#: Maximum number of problems in a :class:`ModelError`, and of characters of each.
_TOLD_PROBLEMS = 100
_PROBLEM_CHARS = 1000
#: Attributes that say where and by which code an error is known; these are no guest's words.
_NAMES = frozenset({"code", "exit_code", "extension", "instance", "log", "operation", "scale_set"})
#: Attributes that Python's own errors have beside their variables, and show.
_BUILT_IN = ("strerror", "filename", "filename2", "object", "reason")
#: Error numbers that mean the host is out of memory, processes, descriptors or disk space.
_EXHAUSTED = frozenset(
    {errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT}
)


class VmssError(Exception):
    """Base class of all errors of this package.

    Attributes:
        code: Azure's error code where Azure has one, otherwise one of this
            package's own in the same style.
    """

    code: str = "InternalExecutionError"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        # Many messages quote guests, so strip escape sequences that would control a terminal (R2).
        super().__init__(clean(message))
        if code is not None:
            self.code = code

    def __reduce__(self) -> tuple[Any, ...]:
        """Lets an error pass to another process; its class may need more than its message."""
        return _unpickled, (type(self), self.args), vars(self)

    @property
    def message(self) -> str:
        """The error message, without evidence such as a console's tail."""
        return str(self.args[0])


def _unpickled(kind: type[VmssError], args: tuple[object, ...]) -> VmssError:
    return kind.__new__(kind, *args)


class LabError(VmssError):
    """The lab's state directory cannot be used."""

    code = "LabUnusable"


class NotModelledWarning(UserWarning):
    """A part of a model has no effect here, is left out, or is done in another way (A6)."""


class HostError(VmssError):
    """The host lacks something; the message names the command that fixes it.

    Attributes:
        mend: That command or step alone, if known; otherwise empty.
    """

    code = "HostNotReady"

    def __init__(self, message: str, *, code: str | None = None, mend: str = "") -> None:
        super().__init__(message, code=code)
        self.mend = mend


class CapacityError(HostError):
    """The host has too little memory or disk for what was requested (M7)."""

    code = "AllocationFailed"


class ToolError(HostError):
    """A program on the host failed.

    Attributes:
        argv: The command as it was run.
        returncode: Its exit status; None if it could not be started.
        stderr: The end of its standard error.
    """

    code = "ToolFailed"

    def __init__(
        self, message: str, *, argv: Sequence[str], returncode: int | None, stderr: str
    ) -> None:
        super().__init__(message)
        self.argv = tuple(argv)
        self.returncode = returncode
        self.stderr = stderr


class HypervisorError(VmssError):
    """libvirt refused or failed an operation."""

    code = "HypervisorFailed"


class CheckpointError(HypervisorError):
    """A checkpoint cannot be used; what was to be restored from it boots instead."""


class BalancerError(VmssError):
    """The load balancer failed, or refused a command."""

    code = "LoadBalancerFailed"


class ImageError(VmssError):
    """An image file or version cannot be used; nothing was stored (B4)."""

    code = "InvalidImage"


class NotFoundError(VmssError):
    """A named resource does not exist."""

    code = "ResourceNotFound"


class ConflictError(VmssError):
    """The operation conflicts with another one in progress (HTTP 409)."""

    code = "OperationNotAllowed"


@dataclass(frozen=True)
class ModelProblem:
    """One thing wrong with a scale-set model.

    Attributes:
        path: JSON path of the value, e.g. ``$.sku.name``.
        code: Azure's error code.
        message: What is wrong and what would be right.
    """

    path: str
    code: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message} ({self.code})"


class ModelError(VmssError):
    """A scale-set model is invalid; nothing was created (A6).

    Attributes:
        problems: What is wrong, in document order; at most the first 100 problems.
        verdict: Which document is not what it must be.
    """

    code = "InvalidParameter"

    def __init__(
        self,
        problems: Sequence[ModelProblem],
        *,
        source: str = "the model",
        expected: str = "a valid scale set",
    ) -> None:
        self.problems = tuple(problems[:_TOLD_PROBLEMS])
        lines = "\n".join(f"  {problem}"[:_PROBLEM_CHARS] for problem in self.problems)
        if more := len(problems) - len(self.problems):
            lines += f"\n  and {more} more"
        self.verdict = f"{source} is not {expected}"
        super().__init__(f"{self.verdict}:\n{lines}")
        if self.problems:
            self.code = self.problems[0].code


class WaitTimeoutError(VmssError):
    """A wait timed out.

    Attributes:
        what: What was being waited for.
        timeout: The timeout in seconds, after any multiplier.
        last: The last state seen; empty if unknown.
    """

    code = "RollingUpgradeTimeoutError"

    def __init__(self, what: str, *, timeout: float, last: str = "") -> None:
        self.what = what
        self.timeout = timeout
        self.last = last
        got = f"; last seen: {last}" if last else ""
        super().__init__(f"timed out after {timeout:.0f} s waiting for {what}{got}")


class InstanceError(VmssError):
    """Something failed on one instance (E5).

    Attributes:
        instance: Name of the instance, ``{set}_{id}``.
        console_tail: Last lines of its console; may be empty.
        log: Path of the full console log, if there is one.
    """

    code = "VMExtensionProvisioningError"

    def __init__(
        self,
        message: str,
        *,
        instance: str,
        console_tail: str = "",
        log: Path | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message, code=code)
        self.instance = instance
        self.console_tail = clean(console_tail)
        self.log = log

    def __str__(self) -> str:
        text = f"{self.instance}: {self.message}"
        if self.console_tail:
            text += "\n--- the console's last lines ---\n" + self.console_tail.rstrip()
        if self.log is not None:
            text += f"\n--- whole console log: {self.log}"
        return text


class BootError(InstanceError):
    """An instance failed to boot; subclasses say how far it got."""

    code = "VMStartTimedOut"


class NoBootError(BootError):
    """Firmware or boot loader found nothing to boot, or the VM stopped."""

    code = "OSProvisioningNoBoot"


class KernelPanicError(BootError):
    """The guest's kernel panicked."""

    code = "OSProvisioningKernelPanic"


class GuestUnreachableError(BootError):
    """The guest runs but does not answer over SSH."""

    code = "OSProvisioningTimedOut"


class NotProvisionedError(BootError):
    """The guest reported to Azure's wire server that it could not be provisioned (O2)."""

    code = "OSProvisioningClientError"


class CloudInitError(InstanceError):
    """cloud-init finished with an error.

    Attributes:
        errors: The errors that cloud-init itself reported.
    """

    code = "OSProvisioningClientError"

    def __init__(
        self,
        message: str,
        *,
        instance: str,
        errors: Sequence[str] = (),
        console_tail: str = "",
        log: Path | None = None,
    ) -> None:
        super().__init__(message, instance=instance, console_tail=console_tail, log=log)
        self.errors = tuple(clean(error) for error in errors)


class ExtensionError(InstanceError):
    """An extension failed.

    Attributes:
        extension: Name of the extension in the model.
        exit_code: Exit status of its handler; None if it did not finish.
    """

    code = "VMExtensionProvisioningError"

    def __init__(
        self,
        message: str,
        *,
        instance: str,
        extension: str,
        exit_code: int | None,
        console_tail: str = "",
        log: Path | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message, instance=instance, console_tail=console_tail, log=log, code=code)
        self.extension = extension
        self.exit_code = exit_code


class UnhealthyError(InstanceError):
    """The application did not become healthy in time (F6)."""

    code = "InstanceUnhealthy"


class GuestCommandError(InstanceError):
    """A command in the guest exited with a non-zero status.

    Attributes:
        exit_code: The command's exit status.
        stderr: Its standard error.
    """

    code = "RunCommandFailed"

    def __init__(self, message: str, *, instance: str, exit_code: int, stderr: str) -> None:
        super().__init__(message, instance=instance)
        self.exit_code = exit_code
        self.stderr = stderr


class ProvisioningError(VmssError):
    """Instances of a new set failed to start; the set is kept for inspection.

    Attributes:
        scale_set: Name of the set.
        evidence: What went wrong on each failed instance, with the end of its console.
    """

    code = "VMProvisioningFailed"

    def __init__(self, message: str, *, scale_set: str, evidence: str, code: str) -> None:
        super().__init__(message, code=code)
        self.scale_set = scale_set
        self.evidence = clean(evidence)

    def __str__(self) -> str:
        return f"{self.message}\n{self.evidence}"


class UpgradeError(VmssError):
    """An upgrade could not start, or did not end as requested."""


class InterruptedOperationError(UpgradeError):
    """The host could not continue an operation; it is unfinished and can be resumed (Q1).

    It implies no verdict: a disk that could not be written says nothing about an image.

    Attributes:
        scale_set: Name of the set.
        operation: Id of the operation.
    """

    code = "OperationInterrupted"

    def __init__(self, message: str, *, scale_set: str, operation: str) -> None:
        super().__init__(message)
        self.scale_set = scale_set
        self.operation = operation


class ViolationError(VmssError, AssertionError):
    """An invariant was violated; the test that raises this has failed.

    Attributes:
        violations: Every violation that was found.
    """

    code = "Violation"

    def __init__(self, message: str, *, violations: Sequence[object]) -> None:
        super().__init__(message)
        self.violations = tuple(violations)


def is_verdict(error: BaseException) -> bool:
    """Whether an error may count against an instance, and so against its image (Q1).

    An instance fails by what its guest does, or does not do in time, and when the hypervisor
    refuses an operation on it. Everything else (a full disk, a stopped daemon, too many
    threads, a bug in this package) says nothing about it: the operation is left unfinished
    and resumes from there once the cause is fixed.
    """
    return isinstance(error, InstanceError | WaitTimeoutError | HypervisorError)


def is_host_trouble(error: BaseException) -> bool:
    """Whether an error means that the host has run out of a resource, whoever raised it.

    A suite whose own code could not get memory, a thread, a file descriptor or disk space
    has not failed.
    """
    if isinstance(error, OSError):
        return error.errno in _EXHAUSTED
    return isinstance(error, MemoryError) or is_out_of_threads(error)


def is_out_of_threads(error: BaseException) -> bool:
    """Whether an error is CPython's if the host allows no more threads."""
    return isinstance(error, RuntimeError) and "can't start new thread" in str(error)


def mask_error(error: BaseException, mask: Callable[[str], str]) -> None:
    """Masks what an error and its causes quote of a guest, in place (M5).

    The frames that raised an error of this package have had what the guest said, and would show
    it in a traceback with local variables, so those are cleared.

    Args:
        error: The error, as it leaves the code that speaks with the guest.
        mask: Masks a text.
    """
    for one in _with_causes(error):
        one.args = _quoting(one.args, mask)
        for name in (*(vars(one).keys() - _NAMES), *_BUILT_IN):
            value = getattr(one, name, None)
            quoting = _quoting(value, mask)
            if quoting is not value:
                with contextlib.suppress(AttributeError, TypeError):  # it cannot be set
                    setattr(one, name, quoting)
        if isinstance(error, VmssError):
            traceback.clear_frames(one.__traceback__)


def _quoting(value: Any, mask: Callable[[str], str]) -> Any:
    """Returns what an error quotes with its secrets masked; the same object if it has none."""
    if isinstance(value, str):
        masked = mask(value)
        return value if masked == value else masked
    if isinstance(value, bytes):
        text = value.decode(errors="surrogateescape")
        masked = mask(text)
        return value if masked == text else masked.encode(errors="surrogateescape")
    parts: Any
    if type(value) in (tuple, list, set, frozenset):
        parts = [_quoting(part, mask) for part in value]
        same = all(new is old for new, old in zip(parts, value, strict=True))
        return value if same else type(value)(parts)
    if type(value) is dict:
        parts = {_quoting(key, mask): _quoting(item, mask) for key, item in value.items()}
        same = all(new is old for new, old in zip(parts.values(), value.values(), strict=False))
        return value if same and parts.keys() == value.keys() else parts
    return value


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    """Yields an error, and all that a traceback shows as having led to it, or as part of it."""
    found = [error]
    for one in found:
        yield one
        members = one.exceptions if isinstance(one, BaseExceptionGroup) else ()
        for other in (one.__cause__, one.__context__, *members):
            if other is not None and all(other is not known for known in found):
                found.append(other)


def error_text(failure: BaseException) -> str:
    """Returns an exception's type and message, even if its ``__str__`` raises."""
    try:
        text = str(failure)
    except Exception as error:  # noqa: BLE001 - a failure without a text is still reported
        text = f"(its text cannot be had: {type(error).__name__})"
    kind = type(failure).__name__
    return f"{kind}: {text}" if text else kind


def error_summary(error: Exception) -> tuple[str, str]:
    """Returns an error's code and message, as stored in records and events."""
    if isinstance(error, VmssError):
        return error.code, error.message
    return "InternalExecutionError", error_text(error)

"""Every error that pytest-vmss raises on purpose.

One root, :class:`VmssError`; leaves carry fields that a test or a report can
use. A message says what happened, what was expected and what to do.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_vmss.untrusted import clean

__all__ = [
    "BalancerError",
    "BootError",
    "CapacityError",
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
    "is_verdict",
]


#: Problems of one model, and characters of each, that a message tells: a hostile model has any.
_TOLD_PROBLEMS = 100
_PROBLEM_CHARS = 1000
#: The host has no more memory, processes, descriptors or room.
_EXHAUSTED = frozenset(
    {errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT}
)


class VmssError(Exception):
    """Root of all errors of this package.

    Attributes:
        code: Azure's error code where Azure has one, else a code of this
            package in the same style.
    """

    code: str = "InternalExecutionError"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        # Words of guests are in many of them; none commands the terminal that shows it (R2).
        super().__init__(clean(message))
        if code is not None:
            self.code = code

    @property
    def message(self) -> str:
        """The error in words, without evidence such as a console's tail."""
        return str(self.args[0])


class LabError(VmssError):
    """The lab's state directory cannot be used."""

    code = "LabUnusable"


class HostError(VmssError):
    """The host lacks something; the message names the command that mends it.

    Attributes:
        mend: That command or step alone, where it is known.
    """

    code = "HostNotReady"

    def __init__(self, message: str, *, code: str | None = None, mend: str = "") -> None:
        super().__init__(message, code=code)
        self.mend = mend


class CapacityError(HostError):
    """The host has too little memory or disk for what was asked (M7)."""

    code = "AllocationFailed"


class ToolError(HostError):
    """A program of the host failed.

    Attributes:
        argv: The command as it was run.
        returncode: Its exit status; None where it could not be started.
        stderr: The end of what it wrote to standard error.
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


class BalancerError(VmssError):
    """The load balancer does not do what it is asked."""

    code = "LoadBalancerFailed"


class ImageError(VmssError):
    """An image file or version cannot be used; nothing was stored (B4)."""

    code = "InvalidImage"


class NotFoundError(VmssError):
    """Something that was named does not exist."""

    code = "ResourceNotFound"


class ConflictError(VmssError):
    """The operation collides with another that is in progress (HTTP 409)."""

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
    """A scale-set model is not valid; nothing was created (A6).

    Attributes:
        problems: What is wrong, in the order of the document; of very many the first.
    """

    code = "InvalidParameter"

    def __init__(self, problems: Sequence[ModelProblem], *, source: str = "the model") -> None:
        self.problems = tuple(problems[:_TOLD_PROBLEMS])
        lines = "\n".join(f"  {problem}"[:_PROBLEM_CHARS] for problem in self.problems)
        if more := len(problems) - len(self.problems):
            lines += f"\n  and {more} more"
        super().__init__(f"{source} is not a valid scale set:\n{lines}")
        if self.problems:
            self.code = self.problems[0].code


class WaitTimeoutError(VmssError):
    """A wait reached its limit.

    Attributes:
        what: What was waited for.
        limit: The limit in seconds, after any multiplier.
    """

    code = "RollingUpgradeTimeoutError"

    def __init__(self, what: str, *, timeout: float, last: str = "") -> None:
        self.what = what
        self.timeout = timeout
        self.last = last
        got = f"; last seen: {last}" if last else ""
        super().__init__(f"waited {timeout:.0f} s for {what}, in vain{got}")


class InstanceError(VmssError):
    """Something failed on one instance (E5).

    Attributes:
        instance: Name of the instance, ``{set}_{id}``.
        console_tail: Last lines of its console; empty where there are none.
        log: The whole console log; None where there is none.
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
    """An instance did not come up; leaves say how far it got."""

    code = "VMStartTimedOut"


class NoBootError(BootError):
    """Firmware or boot loader found nothing to start, or the VM ended."""

    code = "OSProvisioningNoBoot"


class KernelPanicError(BootError):
    """The guest's kernel panicked."""

    code = "OSProvisioningKernelPanic"


class GuestUnreachableError(BootError):
    """The guest runs but does not answer over SSH."""

    code = "OSProvisioningTimedOut"


class CloudInitError(InstanceError):
    """cloud-init ended in error.

    Attributes:
        errors: cloud-init's own list of what failed.
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
        exit_code: Exit status of its handler; None where it did not end.
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
    """A command in the guest ended with a status other than 0.

    Attributes:
        exit_code: The command's exit status.
        stderr: What it wrote to standard error.
    """

    code = "RunCommandFailed"

    def __init__(self, message: str, *, instance: str, exit_code: int, stderr: str) -> None:
        super().__init__(message, instance=instance)
        self.exit_code = exit_code
        self.stderr = stderr


class ProvisioningError(VmssError):
    """Instances of a new set did not come up; the set is there to be looked at.

    Attributes:
        scale_set: Its name.
        evidence: For each failed instance what went wrong, with its console's tail.
    """

    code = "VMProvisioningFailed"

    def __init__(self, message: str, *, scale_set: str, evidence: str, code: str) -> None:
        super().__init__(message, code=code)
        self.scale_set = scale_set
        self.evidence = clean(evidence)

    def __str__(self) -> str:
        return f"{self.message}\n{self.evidence}"


class UpgradeError(VmssError):
    """An upgrade could not start, or ended otherwise than asked."""


class InterruptedOperationError(UpgradeError):
    """The host could not go on with an operation; it is unfinished, and can be resumed (Q1).

    Nothing was judged: that no disk could be written says nothing about an image.

    Attributes:
        scale_set: The set's name.
        operation: The operation's id.
    """

    code = "OperationInterrupted"

    def __init__(self, message: str, *, scale_set: str, operation: str) -> None:
        super().__init__(message)
        self.scale_set = scale_set
        self.operation = operation


class ViolationError(VmssError, AssertionError):
    """What must always hold did not; a test that meets it has failed.

    Attributes:
        violations: Every time at which it did not.
    """

    code = "Violation"

    def __init__(self, message: str, *, violations: Sequence[object]) -> None:
        super().__init__(message)
        self.violations = tuple(violations)


def is_verdict(error: BaseException) -> bool:
    """Whether an error may count against an instance, and so against its image (Q1).

    An instance fails by what its guest does or does not do in time, and by what the
    hypervisor refuses for it. Everything else, a full disk, a daemon that is away, too
    many threads, a mistake of this package, says nothing about it: the operation is left
    unfinished, and goes on where it stood once that is mended.
    """
    return isinstance(error, InstanceError | WaitTimeoutError | HypervisorError)


def is_host_trouble(error: BaseException) -> bool:
    """Whether an error says that the host has run out of something, whoever met it.

    That a suite's own code could not have memory, a thread, a file or room on a disk is not
    its failure.
    """
    if isinstance(error, OSError):
        return error.errno in _EXHAUSTED
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and "can't start new thread" in str(error)
    )


def error_text(failure: BaseException) -> str:
    """An exception's kind and text, also of one that cannot be printed."""
    try:
        text = str(failure)
    except Exception as error:  # noqa: BLE001 - a failure must not be lost for its words
        text = f"(its text cannot be had: {type(error).__name__})"
    kind = type(failure).__name__
    return f"{kind}: {text}" if text else kind


def error_summary(error: Exception) -> tuple[str, str]:
    """Code and words of an error, as records and events hold them."""
    if isinstance(error, VmssError):
        return error.code, error.message
    return "InternalExecutionError", f"{type(error).__name__}: {error}"

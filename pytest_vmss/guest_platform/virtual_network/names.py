"""Answers questions for the names of a set's instances, as Azure's name server does (A9).

Other names are refused, so that a guest asks its next name server, or fails at once.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace

from pytest_vmss.guest_platform.frames import Datagram
from pytest_vmss.guest_platform.private_addresses import number_in_name, private_ip_address

__all__ = ["DNS_PORT", "answer", "refuse"]

DNS_PORT = 53

_HEAD = struct.Struct("!HHHHHH")
_QUESTION = struct.Struct("!HH")
_RECORD = struct.Struct("!HHHIH")
_RESPONSE, _AUTHORITATIVE, _COPIED = 0x8000, 0x0400, 0x7900  # opcode and "recursion desired"
_REFUSED, _NO_NAME = 5, 3
_A, _INTERNET = 1, 1
#: Points to the name in the question.
_SAME_NAME = 0xC000 | _HEAD.size
_TTL_S = 10
_LONGEST = 255


def answer(asked: Datagram, prefix: str, exists: Callable[[int], bool]) -> Datagram | None:
    """Answers a question for the name of an instance; None if it is none.

    Args:
        asked: What a guest sent to port 53.
        prefix: The set's ``computerNamePrefix``.
        exists: Whether there is an instance of a number.
    """
    question = _question(asked.payload)
    if question is None:
        return None
    name, kind, size = question
    number = number_in_name(prefix, name)
    if number is None:
        return None
    found = exists(number)
    records = b""
    if found and kind == _A:
        address = private_ip_address(number).packed
        records = _RECORD.pack(_SAME_NAME, _A, _INTERNET, _TTL_S, len(address)) + address
    return _reply(asked, 0 if found else _NO_NAME, asked.payload[_HEAD.size : size], records)


def refuse(asked: Datagram) -> Datagram | None:
    """Refuses a question at once; without an answer guests wait for 20 s."""
    if len(asked.payload) < _HEAD.size or asked.payload[2] & 0x80:
        return None
    question = _question(asked.payload)
    rest = asked.payload[_HEAD.size : question[2]] if question else b""
    return _reply(asked, _REFUSED, rest, b"")


def _question(message: bytes) -> tuple[str, int, int] | None:
    """The name and the type that a message asks for, and where its question ends."""
    if len(message) < _HEAD.size:
        return None
    _, flags, questions, *_ = _HEAD.unpack_from(message)
    if flags & (_RESPONSE | 0x7800) or questions != 1:
        return None
    labels, at = list[str](), _HEAD.size
    while at < len(message) and message[at]:
        size = message[at]
        label = message[at + 1 : at + 1 + size]
        if size > 63 or len(label) < size or at - _HEAD.size > _LONGEST:
            return None
        labels.append(label.decode("latin-1"))
        at += 1 + size
    end = at + 1 + _QUESTION.size
    if len(message) < end:
        return None
    kind, group = _QUESTION.unpack_from(message, at + 1)
    return (".".join(labels), kind, end) if group == _INTERNET else None


def _reply(asked: Datagram, code: int, question: bytes, records: bytes) -> Datagram:
    number, flags, *_ = _HEAD.unpack_from(asked.payload)
    head = _HEAD.pack(
        number, _RESPONSE | (0 if code == _REFUSED else _AUTHORITATIVE) | flags & _COPIED | code,
        1 if question else 0, 1 if records else 0, 0, 0,
    )  # fmt: skip
    return replace(
        asked, source=asked.target, source_port=DNS_PORT, target=asked.source,
        target_port=asked.source_port, payload=head + question + records,
    )  # fmt: skip

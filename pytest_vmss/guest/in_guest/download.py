"""Downloads an extension's ``fileUris`` into a folder (H2, H5).

Runs in guests, and imports nothing of this package. It is told what to fetch by a
file, for URIs may hold tokens and process arguments are everyone's to read. What goes
wrong is written to standard error without them.
"""

from __future__ import annotations

import json
import os
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

_TRIES = 4
_TIMEOUT_S = 60
_BOM = b"\xef\xbb\xbf"
_HEAD = 512
_SAFE = "/%:@!$&'()*+,;=-._~"


def name_of(uri: str) -> str:
    """The name under which a URI's file is kept: the last part of its path.

    Raises:
        ValueError: It has none.
    """
    name = urllib.parse.unquote(urllib.parse.urlsplit(uri).path).rpartition("/")[2]
    if name in ("", ".", ".."):
        raise ValueError("its path names no file")
    return name


def encoded(uri: str) -> str:
    """A URI whose path and query hold nothing that HTTP does not take; what is encoded stays.

    Raises:
        ValueError: It is none.
    """
    parts = urllib.parse.urlsplit(uri)
    return parts._replace(
        path=urllib.parse.quote(parts.path, safe=_SAFE),
        query=urllib.parse.quote(parts.query, safe=_SAFE + "?"),
        fragment="",
    ).geturl()


def unix(content: bytes) -> bytes:
    """A text with Unix line ends and no byte order mark; anything else as it is."""
    if b"\0" in content[:_HEAD]:
        return content
    text = content[len(_BOM) :] if content.startswith(_BOM) else content
    return text.replace(b"\r\n", b"\n")


def fetch(uri: str) -> bytes:
    """Fetches a file; tries again where the server or the network is at fault.

    Raises:
        ValueError: It cannot be had; the message holds no token.
    """
    for attempt in range(1, _TRIES + 1):
        try:
            with urllib.request.urlopen(encoded(uri), timeout=_TIMEOUT_S) as answer:  # noqa: S310
                content: bytes = answer.read()
                return content
        except urllib.error.HTTPError as refused:
            told = f"unexpected status code: actual={refused.code} expected=200"
            if refused.code < 500 or attempt == _TRIES:
                raise ValueError(told) from None
        except (urllib.error.URLError, OSError) as failed:
            if attempt == _TRIES:
                reason = getattr(failed, "reason", failed)
                raise ValueError(f"http request failed: {reason}") from None
        time.sleep(2**attempt)
    raise ValueError("not reached")


def main(wanted_path: str, folder: str) -> None:
    """Fetches everything; ends with status 1 at the first that cannot be had."""
    with open(wanted_path) as file:
        wanted = json.load(file)
    os.remove(wanted_path)
    for index, uri in enumerate(wanted["fileUris"]):
        try:
            name, content = name_of(uri), fetch(uri)
        except ValueError as failed:
            sys.stderr.write(f"failed to download file[{index}]: {failed}\n")
            sys.exit(1)
        with open(os.path.join(folder, name), "wb") as file:
            file.write(content if wanted["skipDos2Unix"] else unix(content))
        os.chmod(os.path.join(folder, name), 0o500)


if __name__ == "__main__":
    main(*sys.argv[1:])

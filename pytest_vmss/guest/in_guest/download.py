"""Downloads an extension's ``fileUris`` into a folder (H2, H5).

Runs in guests, and imports nothing of this package. It is told what to fetch by a
file, for URIs may hold tokens and process arguments are everyone's to read. What goes
wrong is written to standard error without them.
"""

from __future__ import annotations

import http.client
import json
import os
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

#: As the CustomScript extension has it: 3, 6, 12, ... seconds between the tries.
_TRIES = 7
_PAUSE_S = 3
_TIMEOUT_S = 60
_BOM = b"\xef\xbb\xbf"
_HEAD = 512
_SAFE = "/%:@!$&'()*+,;=-._~"


def name_of(uri: str) -> str:
    """The name under which a URI's file is kept: the last part of its path.

    Raises:
        ValueError: It has none.
    """
    name = urllib.parse.unquote(_split(uri).path).rpartition("/")[2]
    if name in ("", ".", ".."):
        raise ValueError("its path names no file")
    return name


def _split(uri: str) -> urllib.parse.SplitResult:
    """A URI's parts.

    Raises:
        ValueError: It is not a URI, or has a user name or a password; the message shows none of it.
    """
    try:
        parts = urllib.parse.urlsplit(uri)
        parts.port  # noqa: B018 - checks it
    except ValueError:
        raise ValueError("it is not a valid URI") from None
    if "@" in parts.netloc:
        raise ValueError(
            "it holds a user name or a password before its host, which is not supported; "
            "use a token in its query instead"
        )
    return parts


def encoded(uri: str) -> str:
    """A URI whose path and query hold nothing that HTTP does not take; what is encoded stays.

    Raises:
        ValueError: It is not a valid URI; the message may quote it.
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
        except (http.client.InvalidURL, ValueError):
            # Their words quote the URI, or the one that it leads to.
            raise ValueError("http request failed: it is not a valid URI") from None
        except (http.client.HTTPException, OSError) as failed:
            if attempt == _TRIES:
                raise ValueError(f"http request failed: {_reason(failed)}") from None
        time.sleep(_PAUSE_S * 2 ** (attempt - 1))
    raise ValueError("not reached")


def _reason(failed: Exception) -> str:
    """Why a request failed, without what a server has said or a URI holds."""
    if isinstance(failed, http.client.HTTPException):
        return f"the server did not answer as HTTP has it ({type(failed).__name__})"
    reason = getattr(failed, "reason", failed)
    words = getattr(reason, "strerror", None)
    return str(words or reason) if isinstance(reason, OSError) else type(failed).__name__


def main(wanted_path: str, folder: str) -> None:
    """Fetches everything; ends with status 1 at the first that cannot be had."""
    with open(wanted_path) as file:
        wanted = json.load(file)
    os.remove(wanted_path)
    for index, uri in enumerate(wanted["fileUris"]):
        try:
            name, content = name_of(uri), fetch(uri)
            _store(os.path.join(folder, name), content if wanted["skipDos2Unix"] else unix(content))
        except ValueError as failed:
            sys.stderr.write(f"failed to download file[{index}]: {failed}\n")
            sys.exit(1)


def _store(path: str, content: bytes) -> None:
    """Writes a file that root alone may read and run.

    Raises:
        ValueError: It cannot be written.
    """
    try:
        with open(path, "wb") as file:
            file.write(content)
        os.chmod(path, 0o500)
    except (OSError, ValueError) as failed:  # ValueError: a NUL in its name
        words = getattr(failed, "strerror", None) or "its name is not valid"
        raise ValueError(f"it cannot be written: {words}") from None


if __name__ == "__main__":
    main(*sys.argv[1:])

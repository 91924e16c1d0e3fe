"""M6: the kernel says whose process is at the other end of a connection."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from pytest_vmss.host.peers import owner_of_peer

SERVER = """
import os, socket, sys
server = socket.create_server(("127.0.0.1", 0))
os.setuid(65534)
print(server.getsockname()[1], flush=True)
link, _ = server.accept()
print("accepted", flush=True)
sys.stdin.read()
"""


def test_a_connection_of_ones_own() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        link = socket.create_connection(server.getsockname())
        with server.accept()[0]:
            assert owner_of_peer(link) == os.geteuid()
        link.close()
        assert owner_of_peer(link) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has other accounts' processes")
def test_a_connection_to_another_account() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            with socket.create_connection(("127.0.0.1", int(process.stdout.readline()))) as link:
                assert process.stdout.readline() == "accepted\n"
                assert owner_of_peer(link) == 65534
        finally:
            process.stdin.close()

"""A real sshd on loopback, with keys and a configuration of its own; nothing of the user's is read."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"
LACKING = "" if all(map(shutil.which, (SSHD, "ssh", "ssh-keygen"))) else "no sshd, ssh and ssh-keygen here"

SERVER = """
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host
PidFile none
AuthorizedKeysFile {folder}/user.pub
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
SetEnv PYTHONPATH={path} LOWLAT_SEG_CACHE={folder}/cache OMP_NUM_THREADS=1
"""

CLIENT = """
Host *
    Hostname 127.0.0.1
    Port {port}
    IdentityFile {folder}/user
    IdentitiesOnly yes
    UserKnownHostsFile {folder}/known
    GlobalKnownHostsFile none
"""


@contextmanager
def sshd(folder: Path) -> Iterator[dict[str, str]]:
    """What environment a client needs to reach a server that runs this Python; it ends with the context."""
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    facts = {"port": port, "folder": folder, "path": os.environ.get("PYTHONPATH", "")}
    (folder / "sshd_config").write_text(SERVER.format(**facts))
    (folder / "ssh_config").write_text(CLIENT.format(**facts))
    key = (folder / "host.pub").read_text().split()
    (folder / "known").write_text(f"[127.0.0.1]:{port} {key[0]} {key[1]}\n")
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where it locks itself in before a login
    server = subprocess.Popen(
        [SSHD, "-D", "-e", "-f", folder / "sshd_config"], stderr=(folder / "log").open("wb")
    )
    try:
        end = time.monotonic() + 60
        while "listening" not in (folder / "log").read_text():
            if server.poll() is not None or time.monotonic() > end:
                raise RuntimeError((folder / "log").read_text())
            time.sleep(0.02)
        yield {
            "LOWLAT_SEG_SSH": f"ssh -F {folder}/ssh_config",
            "LOWLAT_SEG_REMOTE": f"{sys.executable} -m napari_lowlat_seg",
        }
    finally:
        server.terminate()
        server.wait()

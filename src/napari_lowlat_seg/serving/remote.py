"""The address of another machine's GPU, and the command that reaches it: ssh, with the user's own keys.

No port is opened and no token made: whoever may log in there may use it. Pixels travel compressed.
"""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass

PREFIX = "ssh://"

SSH = "LOWLAT_SEG_SSH"
"""Environment variable: the ssh command with options, such as "ssh -F other_config"."""

COMMAND = "LOWLAT_SEG_REMOTE"
"""Environment variable: the command there, where `lowlat-seg` is not on the path of a login."""

# What ssh, a shell there and a reader of messages take for a name and nothing else.
_ADDRESS = re.compile(
    r"ssh://((?P<user>[A-Za-z0-9_][A-Za-z0-9_.-]*)@)?(?P<host>[A-Za-z0-9][A-Za-z0-9_.-]*|\[[0-9A-Fa-f:]+\])"
    r"(:(?P<port>[0-9]{1,5}))?(/(?P<device>[A-Za-z0-9:]+)?)?"
)

OPTIONS = (
    ("BatchMode", "yes"),  # there is no terminal to ask for a password
    ("ConnectTimeout", "15"),
    ("ServerAliveInterval", "10"),
    ("ServerAliveCountMax", "6"),
    ("Compression", "yes"),
)


@dataclass(frozen=True)
class RemoteDevice:
    """A device of another machine.

    Attributes
    ----------
    host
        A name or an address, or a host of the user's ssh configuration.
    user, port
        Empty for those of the configuration.
    device
        As `load_predictor` has it, of the machine there.
    """

    host: str
    user: str = ""
    port: str = ""
    device: str = "auto"

    @classmethod
    def parse(cls, text: str) -> RemoteDevice:
        """The device of "ssh://[USER@]HOST[:PORT][/DEVICE]".

        Raises
        ------
        ValueError
            For another text.

        Examples
        --------
        >>> RemoteDevice.parse("ssh://anna@gpu1:2222/cuda:1")
        RemoteDevice(host='gpu1', user='anna', port='2222', device='cuda:1')
        """
        found = _ADDRESS.fullmatch(text)
        if found is None or int(found["port"] or 1) not in range(1, 65536):
            raise ValueError(
                "expected a device like ssh://HOST, ssh://USER@HOST:PORT or ssh://HOST/cuda:1; "
                f"got {text[:80]!r}"
            )
        host = found["host"].strip("[]")
        return cls(host, found["user"] or "", found["port"] or "", found["device"] or "auto")

    def command(self) -> list[str]:
        """What starts a prediction service there, on the standard input and output of ssh."""
        options = [part for name, value in OPTIONS for part in ("-o", f"{name}={value}")]
        port = ["-p", self.port] if self.port else []
        there = f"{self.user}@{self.host}" if self.user else self.host
        program = os.environ.get(COMMAND, "lowlat-seg")
        ssh = shlex.split(os.environ.get(SSH, "ssh"))
        return [*ssh, "-T", *options, *port, "--", there, *shlex.split(program), "serve", "--stdio"]


def is_remote(device: str) -> bool:
    """Whether a device is one of another machine."""
    return device.startswith(PREFIX)

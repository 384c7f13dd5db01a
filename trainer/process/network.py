"""This host's network interfaces and their addresses."""

import contextlib
import fcntl
import socket
import struct

_SIOCGIFADDR = 0x8915  # linux/sockios.h


def find_interfaces() -> dict[str, str]:
    """Returns the (first) IPv4 address of each network interface that has one."""
    found: dict[str, str] = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            with contextlib.suppress(OSError):  # It has no such address.
                answer = fcntl.ioctl(asked.fileno(), _SIOCGIFADDR, request)
                found[name] = socket.inet_ntoa(answer[20:24])
    return found

"""The first process of a host made by tests/network_hosts.py, in namespaces of its own.

usage: network_host.py NAME FOLDER (with links made from outside; see there)

It gives the host its name and its own /etc/hosts, /etc/ssh, /etc/shadow, /run and /dev/shm, starts
sshd where FOLDER has a configuration of it, says so, and waits for the end of its standard input:
then the kernel ends everything on the host, and removes its links.
"""

import os
import pwd
import socket
import subprocess
import sys
import threading
from pathlib import Path


def mount(*arguments: str) -> None:
    """Mounts something; the mount ends with this host."""
    subprocess.run(["mount", *arguments], check=True)


def reap() -> None:
    """Takes the exit statuses of orphans, as every first process does."""
    while True:
        try:
            os.wait()
        except ChildProcessError:
            threading.Event().wait(0.2)


def main() -> None:
    """Sets the host up."""
    name, folder = sys.argv[1], Path(sys.argv[2])
    socket.sethostname(name)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    mount("-t", "tmpfs", "none", "/dev/shm")
    mount("-t", "tmpfs", "none", "/run")
    os.mkdir("/run/sshd")
    for path in ("/etc/hosts", "/etc/ssh", "/etc/shadow"):
        if (own := folder / Path(path).name).exists() and Path(path).exists():
            mount("--bind", str(own), path)
    keys = Path(pwd.getpwuid(0).pw_dir, ".ssh")
    if keys.is_dir():  # The machine's own keys and settings are none of these hosts'.
        mount("-t", "tmpfs", "none", str(keys))
    print("ready", flush=True)
    for line in sys.stdin:  # What is to be started once the links are there.
        subprocess.Popen(line.split(), stdin=subprocess.DEVNULL)
        threading.Thread(target=reap, daemon=True).start()


if __name__ == "__main__":
    main()

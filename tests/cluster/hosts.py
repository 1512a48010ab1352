"""Machines made of namespaces: each with a network, processes, a home and an sshd of its own.

A host is a process tree in network, mount, pid, UTS and IPC namespaces of its own; a switch, in a
network namespace too, joins them. Nothing of it is in the machine's own network, so that no packet
can leave; and all of it ends with the process that made it, even when that is killed.

They share the machine's disk but for /tmp, /dev/shm and the home. Needs root, and Debian's
openssh-server, rsync and iproute2.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

NETWORK = "10.77.0"
"""The first three bytes of the hosts' addresses."""
NAMESPACES = ("--net", "--mount", "--pid", "--uts", "--ipc")
PREFIX = "bsrnn-hosts-"
START_SECONDS = 20

INIT = """
set -e
mount --make-rprivate /
mount --bind {home}/etc/passwd /etc/passwd
mount --bind {home}/etc/hosts /etc/hosts
mount --bind {home}/etc/resolv.conf /etc/resolv.conf
{own_tmp}
mount -t tmpfs shm /dev/shm
hostname {name}
ip link set lo up
touch {home}/etc/ready
# As the first process, bash also buries those whose parents have died.
sleep infinity & wait
"""
SSHD = """
Port 22
ListenAddress {address}
HostKey {folder}/hostkey
PidFile none
PermitRootLogin prohibit-password
PasswordAuthentication no
AuthorizedKeysFile {home}/.ssh/authorized_keys
StrictModes no
UsePAM no
MaxSessions 50
MaxStartups 50:30:100
"""


def why_not() -> str | None:
    """Why there can be no hosts here, or None when there can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "making hosts out of namespaces needs root on Linux"
    # sshd is where not everybody looks.
    path = f"{os.environ.get('PATH', '')}:/usr/sbin"
    missing = [
        name
        for name in ("sshd", "ssh", "rsync", "ip", "curl", "nsenter")
        if not shutil.which(name, path=path)
    ]
    if missing:
        return f"{', '.join(missing)}: not found; run make hosts"
    trial = subprocess.run(
        ["unshare", *NAMESPACES, "--fork", "--mount-proc", "true"], capture_output=True, text=True
    )
    return None if trial.returncode == 0 else f"no namespaces here: {trial.stderr.strip()}"


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process, and with it the namespaces that it has made."""
    process.kill()
    process.wait()


def unshare(arguments: Sequence[str], **options: object) -> subprocess.Popen[bytes]:
    """A process in namespaces of its own, which die with it, as it does with this one."""
    command = ["setpriv", "--pdeathsig", "KILL", "unshare", "--fork", "--kill-child", *arguments]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, **options)  # type: ignore[call-overload]


class Host:
    """One machine."""

    def __init__(self, hosts: "Hosts", name: str, number: int, profile: Mapping[str, str]) -> None:
        """``profile`` is the environment that its shells have."""
        self.hosts, self.name, self.number = hosts, name, number
        self.address = f"{NETWORK}.{number}"
        self.home = hosts.folder / name
        self._process: subprocess.Popen[bytes] | None = None
        for folder in ("etc", ".ssh", "tmp"):
            (self.home / folder).mkdir(parents=True)
        (self.home / "tmp").chmod(0o1777)
        shutil.copy(hosts.key.with_suffix(".pub"), self.home / ".ssh" / "authorized_keys")
        passwd = Path("/etc/passwd").read_text().replace(":/root:", f":{self.home}:")
        (self.home / "etc" / "passwd").write_text(passwd)
        # As Debian has it: a machine's name leads to itself only.
        (self.home / "etc" / "hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {name}\n")
        (self.home / "etc" / "resolv.conf").write_text("")
        (self.home / "etc" / "sshd").write_text(
            SSHD.format(address=self.address, folder=hosts.folder, home=self.home)
        )
        lines = [f"export {key}='{value}'" for key, value in {**profile, "HOME": self.home}.items()]
        (self.home / ".profile").write_text("\n".join([*lines, ""]))

    @property
    def pid(self) -> int:
        """Its first process, seen from outside."""
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        return int(children.read_text().split()[0])

    def start(self, *, own_tmp: bool = True) -> None:
        """Switch it on; without ``own_tmp`` it sees the machine's /tmp."""
        bind = f"mount --bind {self.home}/tmp /tmp" if own_tmp else ""
        script = INIT.format(home=self.home, name=self.name, own_tmp=bind)
        (self.home / "etc" / "ready").unlink(missing_ok=True)
        with (self.home / "etc" / "log").open("ab") as log:
            self._process = unshare(
                [*NAMESPACES, "--mount-proc", "bash", "-c", script], stdout=log, stderr=log
            )
        deadline = time.monotonic() + START_SECONDS
        while not (self.home / "etc" / "ready").exists():
            assert time.monotonic() < deadline, (self.home / "etc" / "log").read_text()
            time.sleep(0.05)
        self.hosts.connect(self)

    def start_sshd(self) -> None:
        """Let others in by ssh."""
        words = f"/usr/sbin/sshd -D -E {self.home}/etc/log -f {self.home}/etc/sshd"
        self.run(f"setsid {words} </dev/null >/dev/null 2>&1 &")

    def command(self, script: str) -> list[str]:
        """The words that run a script in a login shell here."""
        inside = [f"--{name}" for name in ("net", "mount", "pid", "uts", "ipc")]
        return ["nsenter", f"--target={self.pid}", *inside, "bash", "--login", "-c", script]

    def run(
        self, script: str, *, check: bool = True, timeout: float = 300, text: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a script here; ``text`` is its standard input."""
        result = subprocess.run(
            self.command(script),
            input=text or "",
            env={"TERM": "dumb", "HOME": str(self.home), "PATH": os.defpath},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )
        assert not check or result.returncode == 0, f"{self.name}: {script}\n{result.stdout}"
        return result

    def popen(self, script: str, output: Path) -> subprocess.Popen[bytes]:
        """Start a script here, whose output goes to a file."""
        with output.open("wb") as file:
            return subprocess.Popen(
                self.command(script),
                stdin=subprocess.DEVNULL,
                env={"TERM": "dumb", "HOME": str(self.home), "PATH": os.defpath},
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def processes(self) -> list[str]:
        """The command lines of all that runs here but for the host itself."""
        lines = self.run("ps -eo pid,args --no-headers").stdout.splitlines()
        own = ("sshd", "sleep infinity", "ps -eo")
        return [line for line in lines if not any(name in line for name in own)]

    def kill9(self) -> None:
        """Kill all of its processes at once, as when its power fails."""
        assert self._process is not None
        os.kill(self.pid, signal.SIGKILL)
        end(self._process)

    @contextmanager
    def without_network(self) -> Iterator[None]:
        """Pull the cable out meanwhile."""
        self.hosts.set_link(self, "down")
        try:
            yield
        finally:
            self.hosts.set_link(self, "up")

    def close(self) -> None:
        """Switch it off, if it is on."""
        if self._process is not None and self._process.poll() is None:
            end(self._process)


class Hosts:
    """A switch and the hosts on it."""

    def __init__(self) -> None:
        for left in Path("/var/tmp").glob(f"{PREFIX}*"):
            # What a killed run has left; its processes are gone with it.
            if not Path("/proc", left.name.removeprefix(PREFIX).partition("-")[0]).exists():
                shutil.rmtree(left, ignore_errors=True)
        # Not in /tmp, of which each host has its own.
        self.folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir="/var/tmp"))
        self.key = self.folder / "key"
        for key in (self.key, self.folder / "hostkey"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
        Path("/run/sshd").mkdir(exist_ok=True)
        self._hosts: dict[str, Host] = {}
        self._switch = unshare(["--net", "--pid", "bash", "-c", "sleep infinity & wait"])
        self._in_switch("true")
        self._in_switch("ip link add br0 type bridge && ip link set br0 up")

    def add(self, name: str, profile: Mapping[str, str]) -> Host:
        """A new host, which is off yet."""
        self._hosts[name] = Host(self, name, len(self._hosts) + 2, profile)
        return self._hosts[name]

    def connect(self, host: Host) -> None:
        """Plug a host in, and give it its address."""
        link, inside = f"port{host.number}", ["nsenter", f"--target={host.pid}", "--net"]
        pair = f"ip link add {link} type veth peer name eth0 netns {host.pid}"
        # The kernel takes its time to remove that of a host that has died.
        self._in_switch(f"ip link delete {link} 2>/dev/null; {pair}")
        self._in_switch(f"ip link set {link} master br0 up")
        for change in (
            f"addr add {host.address}/24 dev eth0",
            "link set eth0 up",
            # Programs ask which address they would be seen by; on this route nobody answers.
            "route add default dev eth0",
        ):
            subprocess.run([*inside, "ip", *change.split()], check=True)

    def set_link(self, host: Host, state: str) -> None:
        """Put a host's plug "up" or "down"."""
        self._in_switch(f"ip link set port{host.number} {state}")

    def close(self) -> None:
        """End everything, and remove all files."""
        for host in self._hosts.values():
            host.close()
        end(self._switch)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _in_switch(self, script: str) -> None:
        deadline = time.monotonic() + START_SECONDS
        children = Path(f"/proc/{self._switch.pid}/task/{self._switch.pid}/children")
        while not children.read_text().split():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        target = children.read_text().split()[0]
        subprocess.run(["nsenter", f"--target={target}", "--net", "sh", "-c", script], check=True)

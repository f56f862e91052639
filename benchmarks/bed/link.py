"""Hosts joined by a slow network, on one Linux machine: namespaces and a link in userspace.

    with Network.up(("owner", "node"), delay_ms=10, mbit=100) as network:
        subprocess.run([*network.command("node"), "ping", "-c1", network.address("owner")])

Between any two hosts each direction is a line of its own: a packet waits until the line is free,
occupies it for its bits at the given rate, and arrives one delay later. Nothing is dropped until
half a GiB waits, which holds 10 Gbit/s for 400 ms. Linux hands packets over before it cuts them to
1500 bytes (segmentation offload), so that a Python loop keeps up with gigabits while TCP behaves as
on a line of that packet size. Host and this machine also reach each other undelayed, by another
address, for the benchmark's own questions. Needs root, iproute2 and /dev/net/tun.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import heapq
import os
import select
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

PREFIX = "primia-"
_IFF_TUN, _IFF_NO_PI, _IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
_TUNSETIFF, _TUNSETOFFLOAD = 0x400454CA, 0x400454D0
_CHECKSUM, _TSO4 = 0x01, 0x02
_VNET_HEADER = 10
_DESTINATION = _VNET_HEADER + 19  # the last byte of an IPv4 destination, which names the host
_LARGEST = 65536 + _VNET_HEADER
_QUEUE_BYTES = 512 << 20
# Buffers for 10 Gbit/s over 200 ms, a receiver's window that need not grow first (as deploy/k8s
# sets it), and no forgetting of a rate while parties compute: what hosts on such a line are set to,
# alike for every system.
_SETTINGS = (
    "net.ipv4.tcp_rmem=4096 8388608 268435456",
    "net.ipv4.tcp_wmem=4096 65536 268435456",
    "net.ipv4.tcp_slow_start_after_idle=0",
)
# Linux's usual one, or the oldest where it is not allowed. Not BBR: it takes the rate of a line for
# that of the messages so far and spreads each over a whole round trip.
_CONTROLS = ("cubic", "reno")


def missing() -> str | None:
    """Why there can be no such network here, or None."""
    if sys.platform != "linux":
        return "network namespaces need Linux"
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need iproute2 (ip)"
    if not os.path.exists("/dev/net/tun"):
        return "there is no /dev/net/tun"
    return None


@dataclass(frozen=True)
class Network:
    """Hosts by name; their processes are started with ``command(host)`` before their own words."""

    hosts: tuple[str, ...]
    _process: subprocess.Popen[str]

    @classmethod
    @contextlib.contextmanager
    def up(cls, hosts: Sequence[str], delay_ms: float = 0, mbit: float = 0) -> Iterator[Network]:
        """``delay_ms``: one way; ``mbit``: Mbit/s of each direction between two hosts, 0 for all
        that the machine can."""
        names = tuple(hosts)
        for name in names:
            _remove(name)
        for number, name in enumerate(names):
            _create(name, number)
        command = [sys.executable, "-m", "benchmarks.bed.link", *names]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        network = cls(names, process)
        try:
            network.set(delay_ms, mbit)
            yield network
        finally:
            process.terminate()
            process.wait()
            for name in names:
                _remove(name)

    def set(self, delay_ms: float, mbit: float = 0, between: Sequence[str] = ()) -> None:
        """From the next packet on; between these hosts only, and at once between others."""
        slow = ",".join(str(self.hosts.index(host)) for host in between or self.hosts)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{delay_ms} {mbit} {slow}\n")
        self._process.stdin.flush()
        if self._process.stdout.readline().strip() != "set":
            raise RuntimeError("The link has ended.")

    def command(self, host: str) -> list[str]:
        return ["ip", "netns", "exec", PREFIX + host]

    def address(self, host: str) -> str:
        """Over the slow network, for the other hosts."""
        return f"10.78.0.{self.hosts.index(host) + 1}"

    def direct(self, host: str) -> str:
        """Undelayed, for this machine."""
        return f"10.79.{self.hosts.index(host) + 1}.2"


def _create(name: str, number: int) -> None:
    space, near, far = PREFIX + name, f"pm{number}", f"pn{number}"
    # Of an earlier network that was killed: as long as anything runs in it, its devices stay.
    subprocess.run(["ip", "link", "del", near], stderr=subprocess.DEVNULL)
    inside = f"ip netns exec {space}"
    for command in (
        f"ip netns add {space}",
        f"ip link add {near} type veth peer name {far} netns {space}",
        f"ip addr add 10.79.{number + 1}.1/30 dev {near}",
        f"ip link set {near} up",
        f"{inside} ip addr add 10.79.{number + 1}.2/30 dev {far}",
        f"{inside} ip link set {far} up",
        f"{inside} ip link set lo up",
    ):
        subprocess.run(command.split(), check=True)
    for setting in _SETTINGS:
        subprocess.run([*inside.split(), "sysctl", "-qw", setting], check=True)
    for control in _CONTROLS:
        setting = f"net.ipv4.tcp_congestion_control={control}"
        command = [*inside.split(), "sysctl", "-qw", setting]
        if subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 0:
            break


def _remove(name: str) -> None:
    subprocess.run(["ip", "netns", "del", PREFIX + name], stderr=subprocess.DEVNULL)


def _tunnel(name: str, address: str) -> int:
    """A tunnel device inside the namespace, opened from here."""
    libc = ctypes.CDLL(None, use_errno=True)
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    space = os.open(f"/var/run/netns/{PREFIX}{name}", os.O_RDONLY)
    if libc.setns(space, 0):
        raise OSError(ctypes.get_errno(), f"cannot enter the namespace of {name}")
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    kind = _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", b"line", kind))
    fcntl.ioctl(device, _TUNSETOFFLOAD, _CHECKSUM | _TSO4)
    for command in (
        f"ip addr add {address}/24 dev line",
        "ip link set line mtu 1500 txqueuelen 100000 up",
    ):
        subprocess.run(command.split(), check=True)
    libc.setns(home, 0)
    os.close(space)
    os.close(home)
    return device


class _Switch:
    """Packets between the tunnels, each held until it would have arrived."""

    def __init__(self, devices: Sequence[int]) -> None:
        self.devices = list(devices)
        self.delay, self.rate = 0.0, 0.0  # seconds; bytes a second, 0: unlimited
        self.slow: frozenset[int] = frozenset()
        self.free: dict[tuple[int, int], float] = {}
        self.waiting: list[tuple[float, int, int, bytes]] = []
        self.held, self.count = 0, 0

    def take(self, device: int) -> None:
        source = self.devices.index(device)
        for _ in range(64):
            try:
                packet = os.read(device, _LARGEST)
            except BlockingIOError:
                return
            target = packet[_DESTINATION] - 1
            known = packet[_VNET_HEADER] >> 4 == 4 and 0 <= target < len(self.devices)
            if not known or self.held > _QUEUE_BYTES:
                continue
            due = self._arrival(source, target, len(packet))
            self.count += 1
            self.held += len(packet)
            heapq.heappush(self.waiting, (due, self.count, self.devices[target], packet))

    def _arrival(self, source: int, target: int, size: int) -> float:
        now = time.monotonic()
        if not {source, target} <= self.slow:
            return now
        if not self.rate:
            return now + self.delay
        sent = max(now, self.free.get((source, target), 0.0)) + size / self.rate
        self.free[source, target] = sent
        return sent + self.delay

    def deliver(self) -> float:
        """Everything that is due; seconds until the next."""
        while self.waiting:
            left = self.waiting[0][0] - time.monotonic()
            if left > 0:
                return left
            _, _, device, packet = heapq.heappop(self.waiting)
            self.held -= len(packet)
            with contextlib.suppress(OSError):  # the receiver's queue is full: a lost packet
                os.write(device, packet)
        return 1.0

    def run(self) -> None:
        pause = 0.0
        while True:
            ready, _, _ = select.select([sys.stdin, *self.devices], [], [], pause)
            for each in ready:
                if isinstance(each, int):
                    self.take(each)
                elif not self._told():
                    return
            pause = self.deliver()

    def _told(self) -> bool:
        line = sys.stdin.readline().split()
        if len(line) != 3:
            return False
        self.slow = frozenset(int(host) for host in line[2].split(","))
        self.delay, self.rate = float(line[0]) / 1000, float(line[1]) * 125_000
        print("set", flush=True)
        return True


if __name__ == "__main__":
    tunnels = [_tunnel(name, f"10.78.0.{k + 1}") for k, name in enumerate(sys.argv[1:])]
    with contextlib.suppress(KeyboardInterrupt):
        _Switch(tunnels).run()

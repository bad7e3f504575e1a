"""The attempts to leak, and the layers of the jail that stop each.

An attempt is hostile code in a file of its own that runs by itself; here it is only named. `stops` are the layers that,
taken away together, let it out again: that is tried too, so that a trial which sees no leak means something.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hagane.jail.attempts import files, network, output, processes, relays, ring, shared

Act = Callable[[bytes, dict[str, Any]], None]


@dataclass(frozen=True)
class Attempt:
    """One way to get a token out."""

    act: Act
    """What is run, alone in a process."""
    stops: tuple[str, ...]
    """Names of the jail's layers that stop it, each by itself; without all of them it must leak."""
    holds: bool = False
    """What it leaves is there only while it runs, so it stays a while."""
    known_open: str = ""
    """Why no layer stops it; empty for all that a jail answers for."""

    @property
    def name(self) -> str:
        """Its name."""
        return self.act.__name__

    @property
    def file(self) -> Path:
        """The file to run."""
        return Path(self.act.__code__.co_filename)

    @property
    def words(self) -> str:
        """What it tries, in a sentence."""
        return (self.act.__doc__ or "").strip()


NET, NET_FAMILY, SHARED_TMP = ("netns",), ("netns", "seccomp_families"), ("private_tmpfs",)
ROOT = ("mountns", "landlock")
LANDLOCK = ("landlock", "landlock_scope")
OUTSIDE = ("pidns", "userns", "caps", *LANDLOCK)
ATTEMPTS: tuple[Attempt, ...] = (
    *(Attempt(act, NET) for act in (network.tcp, network.udp, network.dns, network.host_address, network.tcp6)),
    *(Attempt(act, NET) for act in (network.udp6, network.fast_open, network.mptcp, network.sctp, network.udp_lite)),
    Attempt(network.by_ctypes, NET),
    Attempt(network.raw_ip, ("netns", "userns", "caps")),
    Attempt(network.ping, ("netns", "userns", "caps")),
    Attempt(network.packet, ("netns", "userns", "caps", "seccomp_families")),
    Attempt(network.netlink, NET_FAMILY),
    Attempt(network.vsock, ("seccomp_vsock",), holds=True),
    Attempt(ring.ring_connect, ("netns", "seccomp_io_uring")),
    Attempt(ring.ring_file, ("private_tmpfs", "seccomp_io_uring")),
    Attempt(relays.unix_path, SHARED_TMP),
    Attempt(relays.unix_datagram, SHARED_TMP),
    Attempt(relays.unix_run, ("mountns",)),
    Attempt(relays.unix_abstract, ("netns", "landlock_scope")),
    Attempt(relays.fifo, SHARED_TMP),
    *(Attempt(act, ("fds",)) for act in (relays.inherited_pipe, relays.inherited_socket, relays.inherited_file)),
    Attempt(relays.inherited_folder, ("fds", "landlock")),
    Attempt(relays.inherited_anyhow, ("fds",)),
    Attempt(output.stdout, ("output",)),
    Attempt(output.stderr, ("output",)),
    Attempt(output.exit_code, ("exit_code",)),
    Attempt(output.killed_by, ("exit_code",)),
    Attempt(output.terminal_text, ("mountns", "session", "landlock")),
    Attempt(output.terminal_input, ("mountns", "session", "landlock", "seccomp_tty")),
    Attempt(output.terminal_other, ROOT),
    Attempt(output.kernel_log, ROOT),
    Attempt(processes.take_descriptor, (*OUTSIDE, "seccomp_ptrace")),
    Attempt(processes.write_memory, (*OUTSIDE, "seccomp_ptrace")),
    Attempt(processes.trace, (*OUTSIDE, "seccomp_ptrace")),
    *(Attempt(act, OUTSIDE) for act in (processes.proc_memory, processes.proc_descriptor, processes.proc_root)),
    Attempt(processes.signals, ("pidns", "landlock_scope")),
    Attempt(processes.outlive, ("pidns",), holds=True),
    Attempt(processes.enter_namespace, (*OUTSIDE, "seccomp_namespaces")),
    Attempt(processes.remount, ("read_only", "landlock")),
    Attempt(processes.nested_user, ("read_only", "landlock", "seccomp_namespaces", "seccomp_mounts")),
    Attempt(processes.climb, ("private_tmpfs", "userns", "caps", "seccomp_mounts")),
    Attempt(shared.sysv_memory, ("ipcns",)),
    Attempt(shared.sysv_queue, ("ipcns",)),
    Attempt(shared.sysv_semaphores, ("ipcns",)),
    Attempt(shared.posix_queue, ("ipcns", "landlock")),
    Attempt(shared.user_keyring, ("userns", "seccomp_keys")),
    Attempt(shared.session_keyring, ("keyring", "seccomp_keys")),
    Attempt(shared.bpf_map, ("userns", "caps", "seccomp_kernel"), holds=True),
    Attempt(shared.domain_name, ("utsns", "userns", "caps", "seccomp_kernel")),
    Attempt(shared.control_group, (*ROOT, "userns", "caps")),
    *(Attempt(act, SHARED_TMP) for act in (files.drop_tmp, files.drop_shm, files.drop_run)),
    Attempt(files.drop_var_tmp, ROOT),
    Attempt(files.drop_home, ROOT),
    Attempt(files.drop_here, ("mountns",)),
    *(Attempt(act, ("read_only", "landlock")) for act in (files.drop_data, files.append, files.file_name)),
    *(Attempt(act, ("read_only", "landlock")) for act in (files.hard_link, files.rename, files.symlink)),
    *(Attempt(act, ("read_only",)) for act in (files.file_time, files.attribute, files.mode_bits)),
    Attempt(files.core_dump, ("private_tmpfs", "core")),
    Attempt(files.record_lock, (), True, "locks on a file that may be read are seen by other programs of the host"),
    Attempt(output.title, (), True, "names of processes are read by every user of a host whose /proc has no hidepid"),
)
"""Every attempt that `hagane jail test` makes."""

NOT_COVERED: tuple[tuple[str, str], ...] = (
    ("timing", "when a process computes, sleeps or reads can be measured by a program beside it on the same host"),
    ("load", "how much memory, processor, cache and disk it uses likewise, and which pages of a file lie in memory"),
    ("names of processes", "read by any user of the host; mount the host's /proc with hidepid=invisible"),
    ("locks", "on files that may be read: bits at the speed of system calls, for a program that may read them too"),
    ("GPU", "memory and devices of a GPU node were not tried: no attempt here opens one"),
    ("RDMA", "verbs pass the kernel's sockets by; the fabric's partition must be stated and signed by the site"),
    ("memorisation", "weights that leave through the export gate may hold data"),
)
"""What no attempt tries, or no layer stops, with the reason."""

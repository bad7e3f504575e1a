"""The process outside that attempts try to reach: it lies open to its user, and tells the judge what was done to it.

Run as `python -I decoy.py MEMORY_FD PIPE_FD SIGNAL`: it maps the shared memory, lets itself be traced, prints the
address, then answers each byte on standard input once it has passed on every queued signal to the pipe.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import select
import signal
import struct
import sys

PR_SET_PDEATHSIG, PR_SET_PTRACER, ANYBODY = 1, 0x59616D61, ctypes.c_ulong(-1)
SIGNAL_NOTE = 128  # bytes of struct signalfd_siginfo
VALUE_AT = 44  # of its field ssi_int


def main(memory_fd: int, pipe_fd: int, number: int) -> None:
    """Serve until standard input ends."""
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    libc.prctl(PR_SET_PTRACER, ANYBODY, 0, 0, 0)
    memory = mmap.mmap(memory_fd, mmap.PAGESIZE)
    signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    wanted = ctypes.create_string_buffer(128)
    libc.sigemptyset(wanted)
    libc.sigaddset(wanted, number)
    queued = libc.signalfd(-1, wanted, os.O_NONBLOCK | os.O_CLOEXEC)
    print(ctypes.addressof(ctypes.c_char.from_buffer(memory)), flush=True)
    while True:
        ready, _, _ = select.select([0, queued], [], [])
        if queued in ready:
            notes = os.read(queued, 64 * SIGNAL_NOTE)
            for k in range(0, len(notes), SIGNAL_NOTE):
                (value,) = struct.unpack_from("=i", notes, k + VALUE_AT)
                os.write(pipe_fd, struct.pack(">i", value))
        elif not os.read(0, 1):
            return
        else:
            print("all told", flush=True)


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:4]))

"""Command lines of children that cannot outlive their parent, whenever it dies (Linux, prctl(2) PR_SET_PDEATHSIG)."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

__all__ = ["bound"]

# Runs between fork and exec of the real program, which may take long to import what it needs: a parent that dies then
# takes it along. prctl is called here and not in a preexec_fn, because the parent has threads, and code between fork
# and exec of a threaded process may deadlock. The signal survives exec (prctl(2)). If the parent died before prctl,
# nobody would send the signal: so the parent's id is compared afterwards.
_LAUNCH = """
import os, sys
parent, argv = int(sys.argv[1]), sys.argv[2:]
if sys.platform.startswith("linux"):
    import ctypes
    if ctypes.CDLL(None, use_errno=True).prctl(1, 9, 0, 0, 0):
        sys.exit("prctl: " + os.strerror(ctypes.get_errno()))
if os.getppid() != parent:
    sys.exit("the parent is gone")
os.execv(argv[0], argv)
"""


def bound(argv: Sequence[str]) -> list[str]:
    """A command line that becomes `argv` (its program as a path), in the same process, and dies with this process.

    To be started by a thread that lives as long as the child may (prctl(2), NOTES).
    """
    return [sys.executable, "-I", "-S", "-c", _LAUNCH, str(os.getpid()), *argv]

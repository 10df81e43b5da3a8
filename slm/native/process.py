"""This machine and its processes: where a child finds our modules, and what Linux tells in /proc (proc(5)).

It knows nothing of what a process is for. Elsewhere than on Linux what /proc would tell is unknown, never wrong.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path

# The folder that holds our packages.
ROOT = Path(__file__).resolve().parents[2]
_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


def child_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """An environment for a Python whose modules are ours, wherever it is started."""
    path = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH", "")]))
    return {**environment, "PYTHONPATH": path}


def cpu_fields(name: str) -> list[str]:
    """A field of /proc/cpuinfo, for each processor."""
    return [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.split(":")[0].strip() == name]


def cpu_name() -> str:
    """The processor's name, as far as the system tells."""
    return next(iter(cpu_fields("model name")), "") or platform.processor() or platform.machine()


def memory_bytes(group: Path = Path("/sys/fs/cgroup")) -> tuple[int | None, int | None]:
    """(all memory, what can be had without swapping) within the limit of a container; None where it is unknown.

    https://docs.kernel.org/admin-guide/cgroup-v2.html: memory.max is a number or "max".
    """
    total, available = (_figure("/proc/meminfo", field) for field in ("MemTotal", "MemAvailable"))
    whole = total * 1024 if total is not None else None
    if whole is None and hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        whole = os.sysconf("SC_PHYS_PAGES") * _PAGE
    free = available * 1024 if available is not None else None
    limit, used = (" ".join(_lines(str(group / name))).strip() for name in ("memory.max", "memory.current"))
    if limit.isdigit() and used.isdigit() and (whole is None or int(limit) < whole):
        kept = dict(line.split()[:2] for line in _lines(str(group / "memory.stat")) if len(line.split()) > 1)
        left = int(limit) - int(used) + int(kept.get("inactive_file", 0))
        whole, free = int(limit), left if free is None else min(free, left)
    return whole, free


def children_of(pid: int) -> list[int]:
    """The children of a process and theirs."""
    found = [pid]
    for parent in found:
        for line in _lines(f"/proc/{parent}/task/{parent}/children"):
            found += map(int, line.split())
    return found[1:]


def status_mb(pid: int, field: str = "VmRSS") -> float | None:
    """One figure of /proc/PID/status (VmRSS, VmHWM, RssAnon) in megabytes."""
    kilobytes = _figure(f"/proc/{pid}/status", field)
    return None if kilobytes is None else kilobytes * 1024 / 1e6


def proportional_kb(pid: int) -> int:
    """Memory of a process in kibibytes, shared pages divided among those that share them; 0 where it is unknown."""
    return _figure(f"/proc/{pid}/smaps_rollup", "Pss") or 0


def resident_bytes(pid: int | None) -> int | None:
    """Resident memory of a process."""
    words = " ".join(_lines(f"/proc/{pid}/statm")).split()
    return int(words[1]) * _PAGE if len(words) > 1 else None


def cpu_seconds(pid: int) -> float | None:
    """The processor time that a process has used, in itself and in the kernel for it; None where it is unknown."""
    # The name in parentheses may hold anything; 14 and 15 are counted from 1, with it as 2.
    fields = " ".join(_lines(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") if len(fields) > 12 else None


def _figure(file: str, field: str) -> int | None:
    return next((int(line.split()[1]) for line in _lines(file) if line.startswith(f"{field}:")), None)


def _lines(file: str) -> list[str]:
    try:
        return Path(file).read_text(encoding="utf-8", errors="replace").splitlines()
    except (OSError, ValueError):
        return []

"""Reads command lines of this machine's processes, pods' processes included: once, or again and again while others work."""

import json
import os
import re
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

from checking.outcome import say
from checking.secrets import Findings, Finder

PERIOD_SECONDS = 0.05
OLD_PROCESSES_SECONDS = 1.0
YOUNG_SECONDS = 2.0
MOST_CPU = 0.05
# Overlap between two readings of a log, so that a line cut in two is still seen whole.
OVERLAP = 1 << 16


def _read(pid: str, what: str) -> bytes:
    # A process may end at any moment; then there is nothing to read any more.
    try:
        with open(f"/proc/{pid}/{what}", "rb") as file:
            return file.read()
    except OSError:
        return b""


def _pids() -> list[str]:
    return [name for name in os.listdir("/proc") if name.isdigit()]


def _wanted(pid: str, cgroup: re.Pattern | None) -> bool:
    return cgroup is None or cgroup.search(_read(pid, "cgroup").decode(errors="replace")) is not None


def _place(what: str, pid: str) -> str:
    name = _read(pid, "comm").decode(errors="replace").strip() or "it has ended"
    groups = re.findall(r"[^:\n]*(?:pod|kubepods)[^\n]*", _read(pid, "cgroup").decode(errors="replace"))
    return f"{what} of process {pid} ({name}{', ' + groups[0] if groups else ''})"


def _argv(finder: Finder, line: bytes) -> dict[str, str]:
    # A secret with spaces that nobody quoted is several arguments.
    return finder.find(line.replace(b"\0", b"\n")) | finder.find(line.replace(b"\0", b" "))


def search(findings: Findings, *, argv: bool, environ_of: str | None, only_cgroup: str | None) -> None:
    cgroup = re.compile(only_cgroup) if only_cgroup else None
    matching = re.compile(environ_of) if environ_of else None
    for pid in _pids():
        line = _read(pid, "cmdline")
        if not line or not _wanted(pid, cgroup):
            continue
        if argv:
            findings.count("processes", len(line))
            findings.record(_place("argv", pid), _argv(findings.finder, line))
        if matching and matching.search(line.replace(b"\0", b" ").decode(errors="replace")):
            try:
                environment = Path(f"/proc/{pid}/environ").read_bytes()
            except FileNotFoundError:
                continue
            except OSError as error:
                findings.unsearched.append(f"{_place('environment', pid)}: {error.strerror}")
                continue
            findings.search("environments", _place("environment", pid), environment.replace(b"\0", b"\n"))


@dataclass
class Watch:
    """Looks for new processes every 50 ms and at old ones, which may have called exec, every second."""

    findings: Findings
    out: Path
    only_cgroup: str | None
    log_directories: list[Path]
    _seen: dict[str, tuple[bytes, float]] = field(default_factory=dict)
    _offsets: dict[str, int] = field(default_factory=dict)
    _stopped: bool = False
    _samples: int = 0
    _processes: int = 0
    _longest: float = 0.0

    def run(self, seconds: float) -> None:
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, self._stop)
        cgroup = re.compile(self.only_cgroup) if self.only_cgroup else None
        started, spent = time.monotonic(), time.process_time()
        self._write(finished=False)
        say(f"watching for {seconds:.0f} s")
        next_full, last = 0.0, started
        while not self._stopped and (now := time.monotonic()) - started < seconds:
            self._longest, last = max(self._longest, now - last), now
            before, used = len(self.findings.places), time.process_time()
            full = now >= next_full
            self._sample(now, full=full, cgroup=cgroup)
            if full:
                next_full = now + OLD_PROCESSES_SECONDS
                self._read_logs()
            if len(self.findings.places) > before:
                self._write(finished=False)
            # As long a rest as keeps this round at the allowed share of one CPU.
            time.sleep(max(PERIOD_SECONDS - (time.monotonic() - now), (time.process_time() - used) / MOST_CPU * (1 - MOST_CPU)))
        self._read_logs()
        wall = max(time.monotonic() - started, 0.001)
        self._write(finished=True, seconds=round(wall, 1), cpuPercent=round((time.process_time() - spent) / wall * 100, 1))

    def _stop(self, *_: object) -> None:
        self._stopped = True

    def _sample(self, now: float, *, full: bool, cgroup: re.Pattern | None) -> None:
        self._samples += 1
        pids = _pids()
        for pid in pids:
            line, first = self._seen.get(pid, (b"", now))
            if not full and now - first > YOUNG_SECONDS:
                continue
            found = _read(pid, "cmdline")
            if found == line and line:
                continue
            if pid not in self._seen or found:
                self._processes += 1 if found else 0
                self._seen[pid] = (found, first)
                if found and _wanted(pid, cgroup):
                    self.findings.count("commandLines", len(found))
                    if leaked := _argv(self.findings.finder, found):
                        self.findings.record(_place("argv", pid), leaked)
        if full:
            self._seen = {pid: self._seen[pid] for pid in pids if pid in self._seen}

    def _read_logs(self) -> None:
        """What was appended to the nodes' log files; they vanish with their pods."""
        for directory in self.log_directories:
            for path in directory.rglob("*.log"):
                try:
                    size, offset = path.stat().st_size, self._offsets.get(str(path), 0)
                    if size == offset or path.is_symlink():
                        continue
                    with path.open("rb") as file:
                        file.seek(max(0, offset - OVERLAP) if size > offset else 0)
                        text = file.read()
                except OSError:
                    continue
                self._offsets[str(path)] = size
                self.findings.count("logReadings", len(text))
                self.findings.record(str(path), self.findings.finder.find(text))

    def _write(self, *, finished: bool, **more: float) -> None:
        result = self.findings.result() | {
            "finished": finished, "samples": self._samples, "processes": self._processes,
            "longestGapMillis": round(self._longest * 1000), **more,
        }  # fmt: skip
        part = self.out.with_name(self.out.name + ".part")
        part.write_text(json.dumps(result, indent=2))
        part.rename(self.out)

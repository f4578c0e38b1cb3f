"""Searches what kubectl can show: objects of every kind except Secrets, and the logs of every container."""

import base64
import json
import shlex
import subprocess
from collections.abc import Iterator
from typing import Any

from checking.outcome import CannotAsk
from checking.secrets import Findings

# No secrets, though they lie in one: public certificates, and Helm's records of rendered manifests.
PUBLIC_KEYS = ("ca.crt", "tls.crt", "namespace", "username")
HELM = "helm.sh/release.v1"
SHORT = 6


class Cluster:
    def __init__(self, kubectl: str) -> None:
        self._command = shlex.split(kubectl)

    def _run(self, *arguments: str) -> subprocess.CompletedProcess:
        try:
            return subprocess.run([*self._command, *arguments], capture_output=True, stdin=subprocess.DEVNULL)
        except OSError as error:
            raise CannotAsk(f"{self._command[0]} cannot be started: {error}") from error

    def _json(self, *arguments: str) -> tuple[dict | None, str]:
        done = self._run(*arguments, "-o", "json")
        if done.returncode != 0:
            return None, done.stderr.decode(errors="replace").strip()
        return json.loads(done.stdout or b"{}"), ""

    def secrets(self, namespace: str) -> dict[str, str]:
        """Every value of the namespace's Secrets that is one."""
        listed, why = self._json("get", "secrets", "-n", namespace)
        if listed is None:
            raise CannotAsk(f"the Secrets of {namespace} cannot be read: {why}")
        found = {}
        for secret in listed["items"]:
            for key, value in (secret.get("data") or {}).items():
                text = base64.b64decode(value).decode(errors="replace")
                if secret.get("type") != HELM and key not in PUBLIC_KEYS and len(text) >= SHORT:
                    found[f"{namespace}/{secret['metadata']['name']} {key}"] = text
        return found

    def _kinds(self, namespaced: bool) -> list[str]:
        done = self._run("api-resources", "--verbs=list", f"--namespaced={str(namespaced).lower()}", "-o", "name")
        kinds = [kind for kind in done.stdout.decode().split() if kind != "secrets"]
        # It fails when one API of several is down, but lists the others; that one then misses from what is searched.
        if not kinds or done.returncode != 0:
            raise CannotAsk(f"kubectl api-resources: {done.stderr.decode(errors='replace').strip()}")
        return kinds

    def search(self, namespaces: list[str], findings: Findings) -> None:
        self._search_kinds(self._kinds(namespaced=False), [], findings)
        kinds = self._kinds(namespaced=True)
        for namespace in namespaces:
            # A namespace that is not there lists as empty, which would pass for clean.
            if self._run("get", "namespace", namespace).returncode != 0:
                raise CannotAsk(f"there is no namespace {namespace}")
            self._search_kinds(kinds, ["-n", namespace], findings)
            self._search_logs(namespace, findings)

    def _search_kinds(self, kinds: list[str], where: list[str], findings: Findings) -> None:
        listed, _ = self._json("get", ",".join(kinds), *where, "--show-managed-fields")
        if listed is not None:
            self._search_items(listed["items"], findings)
            return
        for kind in kinds:
            listed, why = self._json("get", kind, *where, "--show-managed-fields")
            if listed is None:
                findings.unsearched.append(f"{kind} {' '.join(where)}: {why}")
            else:
                self._search_items(listed["items"], findings)

    def _search_items(self, items: list[dict], findings: Findings) -> None:
        for item in items:
            metadata = item.get("metadata", {})
            group = item.get("apiVersion", "").rpartition("/")[0]
            kind = item.get("kind", "?") + (f".{group}" if group else "")
            name = f"{kind} {metadata.get('namespace', '')}/{metadata.get('name', '')}"
            findings.count("objects", 0)
            leaves = list(_leaves(item))
            if not findings.finder.find_in_stream(_chunks(leaves)):
                findings.searched["bytes"] = findings.searched.get("bytes", 0) + sum(len(text) for _, text in leaves)
                continue
            before = len(findings.places)
            for path, text in leaves:
                findings.record(f"{name} {path}", findings.finder.find(text))
            if len(findings.places) == before:
                findings.record(f"{name} (several of its fields together)", findings.finder.find_in_stream(_chunks(leaves)))

    def _search_logs(self, namespace: str, findings: Findings) -> None:
        listed, why = self._json("get", "pods", "-n", namespace)
        if listed is None:
            findings.unsearched.append(f"logs of {namespace}: {why}")
            return
        for pod in listed["items"]:
            name, status = pod["metadata"]["name"], pod.get("status", {})
            kinds = ("initContainerStatuses", "containerStatuses", "ephemeralContainerStatuses")
            for container in (entry for kind in kinds for entry in status.get(kind) or []):
                if "waiting" not in container.get("state", {}) or container.get("restartCount", 0):
                    self._search_log(namespace, name, container["name"], [], findings)
                if container.get("lastState"):
                    self._search_log(namespace, name, container["name"], ["--previous"], findings)

    def _search_log(self, namespace: str, pod: str, container: str, which: list[str], findings: Findings) -> None:
        place = f"log of Pod {namespace}/{pod} {container}{' (previous)' if which else ''}"
        done = self._run("logs", "-n", namespace, pod, "-c", container, *which)
        if done.returncode == 0:
            # What the container wrote to standard error is in its log, too; kubectl's own is not.
            findings.search("logs", place, done.stdout)
            return
        why = done.stderr.decode(errors="replace").strip()
        if f'pods "{pod}" not found' in why or "previous terminated container" in why:
            # Deleted since it was listed: no log that anybody could read any more. A watch of the log files saw it.
            findings.excluded.append(f"{place}: it is gone")
        else:
            findings.unsearched.append(f"{place}: {why}")


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, bytes]]:
    """Every text of an object and where it stands; keys are texts, too."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield f"{path} (key)", key.encode()
            yield from _leaves(inner, f"{path}.{key}")
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield from _leaves(inner, f"{path}[{place}]")
    elif value is not None:
        yield path, str(value).encode("utf-8", "replace")


def _chunks(leaves: list[tuple[str, bytes]]) -> Iterator[bytes]:
    yield b"\n\n".join(text for _, text in leaves)

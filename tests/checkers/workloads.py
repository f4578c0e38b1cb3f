#!/usr/bin/env python3
"""Are replicas, images and flags what they should be? `capture` writes what is, `check` compares two of these files."""

import argparse
import hashlib
import json
import shlex
import subprocess
from pathlib import Path
from typing import Any

from checking import outcome

FORMAT = "memoria-workloads/1"
KINDS = "deployments,statefulsets,horizontalpodautoscalers,cronjobs,jobs,configmaps,pods"
# Kubernetes writes it into every namespace by itself.
NOT_OURS = ("kube-root-ca.crt",)
# On every Job that the operator made, or a person with what `rescue` prints.
OPERATORS = {"memoria.arca.run/release", "memoria.arca.run/rescue"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    capturing = commands.add_parser("capture")
    capturing.add_argument("--kubectl", default="kubectl", metavar="COMMAND")
    capturing.add_argument("--namespace", required=True)
    capturing.add_argument("--out", type=Path, required=True)
    checking = commands.add_parser("check")
    checking.add_argument("before", type=Path)
    checking.add_argument("after", type=Path)
    checking.add_argument("--image", action="append", default=[], metavar="WORKLOAD/CONTAINER=REFERENCE")
    checking.add_argument("--config-changed", action="append", default=[], metavar="NAME")
    checking.add_argument("--config-may-appear", action="append", default=[], metavar="PREFIX")
    arguments = parser.parse_args()
    if arguments.command == "capture":
        arguments.out.write_text(json.dumps(capture(arguments.kubectl, arguments.namespace), indent=2, sort_keys=True))
        return outcome.YES
    images = dict(entry.partition("=")[::2] for entry in arguments.image)
    found = differences(_read(arguments.before), _read(arguments.after), images, arguments.config_changed, arguments.config_may_appear)
    outcome.answer({"asExpected": not found, "differences": found})
    return outcome.NO if found else outcome.YES


def _read(path: Path) -> dict[str, Any]:
    try:
        state = json.loads(path.read_text())
        if state["format"] != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
    except (OSError, ValueError, KeyError) as error:
        raise outcome.CannotAsk(f"{path} is not what `workloads.py capture` writes: {error}") from error
    return state


def capture(kubectl: str, namespace: str) -> dict[str, Any]:
    command = [*shlex.split(kubectl), "get", KINDS, "-n", namespace, "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise outcome.CannotAsk(f"kubectl: {done.stderr.strip()}")
    items = json.loads(done.stdout)["items"]
    state: dict[str, Any] = {"format": FORMAT, "workloads": {}, "autoscalers": {}, "cronJobs": {}, "jobs": {}, "configs": {}}
    pods = [item for item in items if item["kind"] == "Pod"]
    for item in items:
        name = item["metadata"]["name"]
        match item["kind"]:
            case "Deployment" | "StatefulSet":
                state["workloads"][name] = _workload(item, pods)
            case "HorizontalPodAutoscaler":
                state["autoscalers"][name] = {key: value for key, value in item["spec"].items() if key != "metrics"}
            case "CronJob":
                state["cronJobs"][name] = {"suspend": item["spec"].get("suspend", False)}
            # Jobs that a CronJob or the operator made come and go.
            case "Job" if "ownerReferences" not in item["metadata"] and OPERATORS.isdisjoint(item["metadata"].get("labels", {})):
                state["jobs"][name] = {"suspend": item["spec"].get("suspend", False), "active": item.get("status", {}).get("active", 0)}
            case "ConfigMap" if name not in NOT_OURS:
                state["configs"][name] = _config(item)
    return state


def _workload(item: dict[str, Any], pods: list[dict[str, Any]]) -> dict[str, Any]:
    spec, status = item["spec"], item.get("status", {})
    labels = spec["selector"].get("matchLabels", {})
    own = [pod for pod in pods if labels.items() <= pod["metadata"].get("labels", {}).items() and "deletionTimestamp" not in pod["metadata"]]
    template = spec["template"]["spec"]
    containers = template["containers"] + template.get("initContainers", [])
    statuses = [entry for pod in own for entry in pod.get("status", {}).get("containerStatuses") or []]
    return {
        "replicas": spec.get("replicas", 1),
        "ready": status.get("readyReplicas", 0),
        "updated": status.get("updatedReplicas", 0),
        "observed": status.get("observedGeneration") == item["metadata"].get("generation"),
        "paused": spec.get("paused", False),
        "pods": len(own),
        "images": {entry["name"]: entry["image"] for entry in containers},
        "running": {
            entry["name"]: sorted({status["imageID"] for status in statuses if status["name"] == entry["name"]})
            for entry in template["containers"]
        },
        # Flags may be environment variables; values that come from Secrets are not here.
        "environment": {entry["name"]: _hash(entry.get("env")) for entry in containers},
    }


def _config(item: dict[str, Any]) -> dict[str, str]:
    return {key: value if len(value) <= 64 else _hash(value) for key, value in {**(item.get("data") or {}), **(item.get("binaryData") or {})}.items()}


def _hash(value: Any) -> str:
    return "sha256:" + hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def differences(before: dict, after: dict, images: dict[str, str], changed: list[str], may_appear: list[str]) -> list[str]:
    found: list[str] = []
    for name in sorted({*before["workloads"], *after["workloads"]}):
        left, right = before["workloads"].get(name), after["workloads"].get(name)
        if left is None or right is None:
            found.append(f"workload {name}: {'missing' if right is None else 'not expected'}")
            continue
        found += _workload_differences(name, left, right, images)
    unknown = [entry for entry in images if not any(entry == f"{name}/{container}" for name, one in after["workloads"].items() for container in one["images"])]
    found += [f"image {entry}: there is no such container" for entry in unknown]
    for kind in ("autoscalers", "cronJobs", "jobs"):
        for name in sorted({*before[kind], *after[kind]}):
            if before[kind].get(name) != after[kind].get(name):
                found.append(f"{kind} {name}: is {after[kind].get(name)}, expected {before[kind].get(name)}")
    return found + _config_differences(before["configs"], after["configs"], changed, may_appear)


def _workload_differences(name: str, left: dict, right: dict, images: dict[str, str]) -> list[str]:
    found = [
        f"workload {name}: {what} is {right[what]}, expected {left[what]}"
        for what in ("replicas", "paused", "environment")
        if left[what] != right[what]
    ]
    found += [
        f"workload {name}: {right[what]} {what} of {right['replicas']} replicas"
        for what in ("ready", "updated", "pods")
        if right[what] != right["replicas"]
    ]
    if not right["observed"]:
        found.append(f"workload {name}: its controller has not seen its last change")
    for container in sorted({*left["images"], *right["images"]}):
        reference = images.get(f"{name}/{container}", left["images"].get(container))
        if right["images"].get(container) != reference:
            found.append(f"workload {name}: image of {container} is {right['images'].get(container)}, expected {reference}")
        if container in right["running"]:
            found += _running(name, container, left, right, images.get(f"{name}/{container}"))
    return found


def _running(name: str, container: str, left: dict, right: dict, asked: str | None) -> list[str]:
    digests = {identity.partition("@")[2] for identity in right["running"][container]}
    if asked is None:
        expected = {identity.partition("@")[2] for identity in left["running"].get(container, [])}
        # A workload at zero has shown no digest before.
        if not expected or not right["replicas"]:
            return []
    else:
        digest = asked.partition("@")[2]
        if not digest or not right["replicas"]:
            return []
        expected = {digest}
    return [] if digests == expected else [f"workload {name}: {container} runs {sorted(digests)}, expected {sorted(expected)}"]


def _config_differences(before: dict, after: dict, changed: list[str], may_appear: list[str]) -> list[str]:
    found = []
    for name in sorted({*before, *after, *changed}):
        if name not in before and name in after and name.startswith(tuple(may_appear) or "\0"):
            continue
        left, right = before.get(name), after.get(name)
        if name in changed:
            if left == right or right is None:
                found.append(f"config {name}: {'missing' if right is None else 'has not changed'}")
        elif right is None or left is None:
            found.append(f"config {name}: {'missing' if right is None else 'not expected'}")
        else:
            keys = sorted(key for key in {*left, *right} if left.get(key) != right.get(key))
            found += [f"config {name}: {key} is {right.get(key)!r}, expected {left.get(key)!r}" for key in keys]
    return found


if __name__ == "__main__":
    outcome.finish(main)

"""Plants canaries in a namespace of a real cluster: MEMORIA_CHECKERS_CLUSTER=1, KUBECONFIG, nodes on this machine.

MEMORIA_CHECKERS_IMAGE is an image with Python that the nodes can pull.
"""

import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

CHECKERS = Path(__file__).resolve().parents[1]
IMAGE = os.environ.get("MEMORIA_CHECKERS_IMAGE", "registry.arca.run/memoria/server:0.9.0")
PLACES = ("data", "annotation", "event", "init log", "log", "previous log", "termination message", "argv")
# The pod knows the canaries by a Secret only. Its first run leaves its traces and dies, the second one stays.
MAIN = """
import json, os, pathlib, sys, time
canary, mark = json.loads(os.environ["CANARIES"]), pathlib.Path("/scratch/mark")
if mark.exists():
    print("now", canary["log"], flush=True)
    os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(600)", "--password=" + canary["argv"]])
mark.touch()
print("first", canary["previous log"], file=sys.stderr, flush=True)
pathlib.Path("/dev/termination-log").write_text("died of " + canary["termination message"])
sys.exit(1)
"""
INIT = "import json, os; print(json.loads(os.environ['CANARIES'])['init log'])"


def kubectl(*arguments: str, text: str | None = None) -> str:
    done = subprocess.run(["kubectl", *arguments], input=text, capture_output=True, text=True)
    if done.returncode != 0:
        raise AssertionError(f"kubectl {arguments[:3]}: {done.stderr}")
    return done.stdout


@unittest.skipUnless(os.environ.get("MEMORIA_CHECKERS_CLUSTER") == "1", "MEMORIA_CHECKERS_CLUSTER is not 1")
class InACluster(unittest.TestCase):
    def setUp(self) -> None:
        self.namespace = f"checkers-{os.getpid()}"
        self.canaries = {place: f"c@n%ry/{secrets.token_hex(8)} \"{place[:4]}\"" for place in PLACES}
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.file = Path(directory.name) / "secrets.json"
        self.file.write_text(json.dumps(self.canaries))
        kubectl("create", "namespace", self.namespace)
        self.addCleanup(kubectl, "delete", "namespace", self.namespace, "--wait=false")

    def ask(self, *arguments: str) -> tuple[int, dict]:
        command = [sys.executable, CHECKERS / "secrets_leaked.py", "--secrets-file", self.file, "--namespace", self.namespace, *arguments]
        done = subprocess.run(command, capture_output=True, text=True)
        for canary in self.canaries.values():
            self.assertNotIn(canary, done.stdout + done.stderr)
        return done.returncode, json.loads(done.stdout or "{}")

    def create(self, kind: str, name: str, api: str = "v1", **more) -> None:
        metadata = {"name": name, "namespace": self.namespace, **more.pop("metadata", {})}
        kubectl("create", "-f", "-", text=json.dumps({"apiVersion": api, "kind": kind, "metadata": metadata, **more}))

    def test_canaries_are_found_and_before_them_none(self) -> None:
        self.create("Secret", "canaries", stringData={"all": json.dumps(self.canaries)})
        code, result = self.ask("--argv")
        self.assertEqual((code, result["places"]), (0, []))
        self.create("ConfigMap", "one", data={"a": self.canaries["data"]}, metadata={"annotations": {"a": self.canaries["annotation"]}})
        involved = {"kind": "ConfigMap", "name": "one", "namespace": self.namespace}
        self.create("Event", "one", involvedObject=involved, message=f"tried {self.canaries['event']}", reason="Tried", type="Normal")
        pod = self.start_pod()
        code, result = self.ask("--argv", "--only-cgroup", pod)
        self.assertEqual((code, result["unsearched"]), (1, []))
        found = {entry["secret"]: entry["place"] for entry in reversed(result["places"])}
        where = {
            "data": f"ConfigMap {self.namespace}/one .data.a",
            "annotation": f"ConfigMap {self.namespace}/one .metadata.annotations.a",
            "event": "Event",
            "init log": f"log of Pod {self.namespace}/one install",
            "log": f"log of Pod {self.namespace}/one main",
            "previous log": f"log of Pod {self.namespace}/one main (previous)",
            "termination message": f"Pod {self.namespace}/one .status.containerStatuses[0].lastState.terminated.message",
            "argv": "argv of process",
        }
        for place, start in where.items():
            with self.subTest(place):
                self.assertTrue(found.get(place, "").startswith(start), found.get(place))

    def start_pod(self) -> str:
        """Gives what its processes' cgroup holds, when it has died once and runs again."""
        environment = [{"name": "CANARIES", "valueFrom": {"secretKeyRef": {"name": "canaries", "key": "all"}}}]
        common = {"image": IMAGE, "env": environment, "volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}]}
        spec = {
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 0,
            "initContainers": [{"name": "install", "command": ["python3", "-c", INIT], **common}],
            "containers": [{"name": "main", "command": ["python3", "-c", MAIN], **common}],
            "volumes": [{"name": "scratch", "emptyDir": {}}],
        }
        self.create("Pod", "one", spec=spec)
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline:
            status = json.loads(kubectl("get", "pod", "one", "-n", self.namespace, "-o", "json"))
            containers = status["status"].get("containerStatuses") or [{}]
            if containers[0].get("restartCount") == 1 and "running" in containers[0]["state"]:
                time.sleep(1)
                return status["metadata"]["uid"]
            time.sleep(1)
        self.fail(f"the pod did not come up: {status['status']}")


if __name__ == "__main__":
    unittest.main()

"""A planted canary is found in every form and place before any zero is believed, and is never printed."""

import base64
import gzip
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

from checking.secrets import CHUNK, Finder

CHECKERS = Path(__file__).resolve().parents[1]
CANARY = 'c@n%r/y"4 \\x\'8;é&<Tweety'
URL = "postgresql+psycopg2://memoria:p%40ss%25w%2Fo%22rd%201@db:5432/memoria?sslmode=prefer"
KEY = "kR7-plainkeywithoutmuch_5"
# Written by hand or by other tools, not by forms.py.
OF_CANARY = {
    "raw": CANARY,
    "percent-encoded": "c%40n%25r%2Fy%224%20%5Cx%278%3B%C3%A9%26%3CTweety",
    "percent-encoded, small letters": "c%40n%25r%2fy%224%20%5cx%278%3b%c3%a9%26%3cTweety",
    "percent-encoded, slash kept": "c%40n%25r/y%224%20%5Cx%278%3B%C3%A9%26%3CTweety",
    "percent-encoded, plus for a space": "c%40n%25r%2Fy%224+%5Cx%278%3B%C3%A9%26%3CTweety",
    "percent-encoded in part": "c%40n%25r/y%224 \\x'8;é&<Tweety",
    "percent-encoded twice": "c%2540n%2525r%252Fy%25224%2520%255Cx%25278%253B%25C3%25A9%2526%253CTweety",
    "JSON": 'c@n%r/y\\"4 \\\\x\'8;\\u00e9&<Tweety',
    "JSON as Go writes it": 'c@n%r/y\\"4 \\\\x\'8;é\\u0026\\u003cTweety',
    "JSON in JSON": 'c@n%r/y\\\\\\"4 \\\\\\\\x\'8;é&<Tweety',
    "a shell's single quotes": "'c@n%r/y\"4 \\x'\"'\"'8;é&<Tweety'",
    "a shell's double quotes": '"c@n%r/y\\"4 \\\\x\'8;é&<Tweety"',
    "SQL": "'c@n%r/y\"4 \\x''8;é&<Tweety'",
    "pgpass": 'localhost:*:*:u:c@n%r/y"4 \\\\x\'8;é&<Tweety',
    "Python's repr": repr(CANARY),
    "Python's repr of bytes": repr(CANARY.encode()),
}


def found(secret: str, text: str | bytes) -> dict[str, str]:
    return Finder({"canary": secret}).find(text if isinstance(text, bytes) else text.encode())


class Forms(unittest.TestCase):
    def test_every_form_is_found(self) -> None:
        for name, text in OF_CANARY.items():
            with self.subTest(name):
                self.assertIn("canary", found(CANARY, f"before {text} after"))

    def test_base64_is_found_wherever_it_begins(self) -> None:
        for before in range(7):
            for after in range(4):
                text = base64.b64encode(b"x" * before + CANARY.encode() + b"y" * after)
                with self.subTest(before=before, after=after):
                    self.assertIn("canary", found(CANARY, b"data: " + text))
                    self.assertIn("canary", found(CANARY, base64.urlsafe_b64encode(text)))
        wrapped = subprocess.run(["base64", "-w", "0"], input=CANARY.encode(), capture_output=True, check=True).stdout
        self.assertIn("canary", found(CANARY, wrapped))

    def test_compressed_and_encoded_is_found(self) -> None:
        self.assertIn("canary", found(CANARY, base64.b64encode(gzip.compress(b"a manifest with " + CANARY.encode()))))

    def test_a_url_gives_its_password_in_all_forms(self) -> None:
        for text in (URL, "p%40ss%25w%2Fo%22rd%201", 'p@ss%w/o"rd 1', 'p@ss%w/o\\"rd 1', "p%40ss%25w/o%22rd+1", base64.b64encode(b'p@ss%w/o"rd 1').decode()):
            with self.subTest(text):
                self.assertIn("canary", found(URL, text))

    def test_the_rest_of_a_url_is_no_secret(self) -> None:
        for text in ("postgresql+psycopg2://memoria@db:5432/memoria?sslmode=prefer", "postgresql", "memoria", "psycopg2", "sslmode=prefer"):
            self.assertEqual(found(URL, text), {})

    def test_fragments_count_from_eight_characters(self) -> None:
        self.assertEqual(found(KEY, "… plainkeywithoutmuch …"), {"canary": "fragment"})
        self.assertEqual(found(KEY, "kR7 and 5"), {})
        self.assertEqual(found("onewordonly", "onewordo"), {})

    def test_other_texts_hold_nothing(self) -> None:
        noise = base64.b64encode(os.urandom(200_000)) + json.dumps(dict(os.environ)).encode() + Path(__file__).with_name("servers.py").read_bytes()
        self.assertEqual(Finder({"a": CANARY, "b": URL, "c": KEY}).find(noise), {})

    def test_a_cut_between_two_chunks_hides_nothing(self) -> None:
        for cut in range(0, len(CANARY.encode()), 3):
            secret = CANARY.encode()
            self.assertIn("canary", Finder({"canary": CANARY}).find_in_stream([b"x" * 5000 + secret[:cut], secret[cut:] + b"y"]))


# A kubectl that knows one namespace. What it answers is in the file that FAKE names.
FAKE_KUBECTL = """#!{python}
import json, os, sys
world = json.load(open(os.environ["FAKE"]))
words = sys.argv[1:]
if words[0] == "api-resources":
    print("\\n".join(world["namespaced"] if "--namespaced=true" in words else world["cluster"]))
elif words[0] == "logs":
    key = " ".join(words[3:])
    if words[3] == world.get("missing"):
        sys.exit('Error from server (NotFound): pods "' + words[3] + '" not found')
    if key not in world["logs"]:
        sys.exit("no log of " + key)
    print(world["logs"][key])
elif words[:2] == ["get", "namespace"]:
    sys.exit(0 if words[2] == "ns" else "not found")
else:
    assert "secrets" not in words[1].split(",") or "-n" in words and world.get("mayReadSecrets"), words
    kinds = words[1].split(",")
    if set(kinds) & set(world.get("broken", [])):
        sys.exit("the server is not able to handle the request")
    print(json.dumps({{"items": [item for kind in kinds for item in world["items"].get(kind, [])]}}))
"""


def item(kind: str, **more) -> dict:
    return {"apiVersion": "v1", "kind": kind, "metadata": {"name": "one", "namespace": "ns", **more.pop("metadata", {})}, **more}


def pod(**more) -> dict:
    containers = [
        {"name": "main", "restartCount": 1, "state": {"running": {}}, "lastState": {"terminated": {"message": more.pop("message", "fine")}}}
    ]
    before = [{"name": "install", "restartCount": 0, "state": {"terminated": {"exitCode": 0}}, "lastState": {}}]
    waiting = [{"name": "late", "restartCount": 0, "state": {"waiting": {}}, "lastState": {}}]
    return item("Pod", status={"initContainerStatuses": before, "containerStatuses": containers + waiting}, **more)


LOGS = {"one -c main": "fine", "one -c main --previous": "fine", "one -c install": "fine"}


class Places(unittest.TestCase):
    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory(prefix="checkers-")
        self.addCleanup(directory.cleanup)
        self.directory = Path(directory.name)
        self.secrets = self.directory / "secrets.json"
        self.secrets.write_text(json.dumps({"canary": CANARY, "db": URL}))
        self.kubectl = self.directory / "kubectl"
        self.kubectl.write_text(FAKE_KUBECTL.format(python=sys.executable))
        self.kubectl.chmod(0o755)

    def ask(self, *arguments: object, world: dict | None = None, secrets: bool = True) -> tuple[int, dict]:
        command = [sys.executable, CHECKERS / "secrets_leaked.py", *map(str, arguments)]
        if secrets:
            command += ["--secrets-file", self.secrets]
        environment = dict(os.environ)
        if world is not None:
            (self.directory / "world").write_text(json.dumps(world))
            environment["FAKE"] = str(self.directory / "world")
            command += ["--kubectl", self.kubectl, "--namespace", "ns"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        self.assertEqual(Finder({"canary": CANARY, "db": URL}).find((done.stdout + done.stderr).encode()), {}, "the checker itself leaked")
        return done.returncode, json.loads(done.stdout or "{}")

    def world(self, *, logs: dict | None = None, **items: list) -> dict:
        return {
            "namespaced": ["configmaps", "events", "pods", "secrets", "memoriaupgrades.memoria.arca.run"],
            "cluster": ["nodes"],
            "items": {"pods": [pod()], **items},
            "logs": {**LOGS, **(logs or {})},
        }

    def test_a_clean_cluster_holds_none(self) -> None:
        code, result = self.ask(world=self.world())
        self.assertEqual((code, result["secretsLeaked"], result["unsearched"]), (0, 0, []))
        self.assertEqual((result["searched"]["objects"], result["searched"]["logs"]), (1, 3))

    def test_a_canary_is_found_in_every_place_of_a_cluster(self) -> None:
        encoded = base64.b64encode(CANARY.encode()).decode()
        planted = {
            "ConfigMap ns/one .data.a": self.world(configmaps=[item("ConfigMap", data={"a": f"x={CANARY}"})]),
            "ConfigMap ns/one .data (key)": self.world(configmaps=[item("ConfigMap", data={CANARY: "x"})]),
            "ConfigMap ns/one .binaryData.a": self.world(configmaps=[item("ConfigMap", binaryData={"a": encoded})]),
            "Event ns/one .message": self.world(events=[item("Event", message=f"Failed: {CANARY}")]),
            "ConfigMap ns/one .metadata.annotations.a": self.world(configmaps=[item("ConfigMap", metadata={"annotations": {"a": json.dumps({"k": CANARY})}})]),
            "ConfigMap ns/one .metadata.managedFields[0].fieldsV1 (key)": self.world(
                configmaps=[item("ConfigMap", metadata={"managedFields": [{"fieldsV1": {f"k:{CANARY}": {}}}]})]
            ),
            "MemoriaUpgrade ns/one .status.phases[0].message": self.world(
                **{"memoriaupgrades.memoria.arca.run": [item("MemoriaUpgrade", status={"phases": [{"message": f"url {URL}"}]})]}
            ),
            "Node ns/one .status.note": self.world(nodes=[item("Node", status={"note": CANARY})]),
            "Pod ns/one .status.containerStatuses[0].lastState.terminated.message": self.world(pods=[pod(message=CANARY)]),
            "Pod ns/one .spec.args[0]": self.world(pods=[pod(spec={"args": [CANARY]})]),
            "log of Pod ns/one main": self.world(logs={"one -c main": f"a\n{CANARY}\nb"}),
            "log of Pod ns/one main (previous)": self.world(logs={"one -c main --previous": CANARY}),
            "log of Pod ns/one install": self.world(logs={"one -c install": OF_CANARY["JSON in JSON"]}),
        }
        for place, world in planted.items():
            with self.subTest(place):
                code, result = self.ask(world=world)
                self.assertEqual(code, 1)
                self.assertIn(place, [entry["place"] for entry in result["places"]])

    def test_a_place_that_is_named_after_a_secret_is_not_printed(self) -> None:
        code, result = self.ask(world=self.world(configmaps=[item("ConfigMap", metadata={"name": CANARY})]))
        self.assertEqual(code, 1)
        self.assertIn("ConfigMap ns/‹secret› .metadata.name", [entry["place"] for entry in result["places"]])

    def test_what_cannot_be_searched_is_no_zero(self) -> None:
        code, result = self.ask(world=self.world() | {"broken": ["events"]})
        self.assertEqual(code, 3)
        self.assertIn("events -n ns: the server is not able to handle the request", result["unsearched"])
        world = self.world()
        del world["logs"]["one -c main --previous"]
        self.assertEqual(self.ask(world=world)[0], 3)
        self.assertEqual(self.ask("--namespace", "nowhere", world=self.world())[0], 2)

    def test_a_pod_that_went_away_meanwhile_is_named_and_does_not_count(self) -> None:
        world = self.world(pods=[pod(metadata={"name": "gone"})]) | {"missing": "gone"}
        code, result = self.ask(world=world)
        self.assertEqual((code, result["unsearched"], len(result["excluded"])), (0, [], 3))

    def test_values_of_the_namespaces_own_secrets_are_sought(self) -> None:
        data = {"password": base64.b64encode(b"fromthesecret1").decode(), "ca.crt": base64.b64encode(b"publiccertificate").decode()}
        world = self.world(secrets=[item("Secret", data=data)], configmaps=[item("ConfigMap", data={"a": "fromthesecret1 publiccertificate"})])
        code, result = self.ask("--secrets-of", "ns", world=world | {"mayReadSecrets": True}, secrets=False)
        self.assertEqual((code, [entry["secret"] for entry in result["places"]]), (1, ["ns/one password"]))

    def test_files_are_searched_and_dumps_are_not(self) -> None:
        below = self.directory / "extra" / "deep"
        below.mkdir(parents=True)
        (below / "clean.json").write_text("{}")
        code, result = self.ask("--extra-dir", below.parent)
        self.assertEqual((code, result["searched"]["files"]), (0, 1))
        for name, content in {
            "manifest.json": json.dumps({"url": URL}).encode(),
            "log.gz": gzip.compress(CANARY.encode()),
            "big": b"x" * (CHUNK + 10) + CANARY.encode() + b"x" * 10,
            "cut": b"x" * (CHUNK + 16 - 5) + CANARY.encode(),
            # Named like a dump, but none.
            "data.dump": CANARY.encode(),
        }.items():
            with self.subTest(name):
                (below / name).write_bytes(content)
                code, result = self.ask("--extra-dir", below.parent)
                self.assertEqual((code, len(result["places"])), (1, 1), result)
                self.assertIn(name, result["places"][0]["place"])
                (below / name).unlink()
        for name, content in {"a.txt": b"PGDMP\1\16" + CANARY.encode(), "b": gzip.compress(b"SQLite format 3\0" + CANARY.encode())}.items():
            (below / name).write_bytes(content)
        code, result = self.ask("--extra-dir", below.parent)
        self.assertEqual((code, len(result["excluded"])), (0, 2))
        (below / "torn.gz").write_bytes(gzip.compress(os.urandom(1000))[:500])
        self.assertEqual(self.ask("--extra-dir", below.parent)[0], 3)

    def test_wrong_questions_are_refused(self) -> None:
        self.assertEqual(self.ask()[0], 2)
        self.assertEqual(self.ask("--argv", secrets=False)[0], 2)
        self.secrets.write_text("abc\n")
        self.assertEqual(self.ask("--argv")[0], 2)
        self.assertEqual(self.ask("--extra-dir", self.directory / "nowhere")[0], 2)


class Processes(Places):
    """The host's processes; a canary of its own, because other tests' processes may hold the other ones."""

    def setUp(self) -> None:
        super().setUp()
        self.canary = f"argv-c@nary/{os.getpid()} {time.monotonic_ns()}"
        self.secrets.write_text(json.dumps({"canary": self.canary}))

    def start(self, *command: str, **environment: str) -> subprocess.Popen:
        process = subprocess.Popen(command, env={"PATH": os.environ["PATH"], **environment}, stdout=subprocess.DEVNULL)
        self.addCleanup(lambda: (process.kill(), process.wait()))
        return process

    def test_an_argument_is_found(self) -> None:
        self.assertEqual(self.ask("--argv")[0], 0)
        process = self.start("sh", "-c", "sleep 30; :", "name", f"--url=x://{self.canary}")
        code, result = self.ask("--argv")
        self.assertEqual((code, len(result["places"])), (1, 1))
        self.assertIn(f"argv of process {process.pid} (sh", result["places"][0]["place"])
        self.assertEqual(self.ask("--argv", "--only-cgroup", "no-such-group")[0], 0)

    def test_an_unquoted_secret_is_found_over_several_arguments(self) -> None:
        self.start("sh", "-c", "sleep 30; :", *self.canary.split())
        self.assertEqual(self.ask("--argv")[0], 1)

    def test_the_environment_is_searched_only_where_asked(self) -> None:
        mark = f"mark-{time.monotonic_ns()}"
        self.start("sh", "-c", "sleep 30; :", mark, PASSWORD=self.canary)
        self.assertEqual(self.ask("--argv")[0], 0)
        code, result = self.ask("--environ-of", mark)
        self.assertEqual((code, len(result["places"])), (1, 1))
        self.assertIn("environment of process", result["places"][0]["place"])

    def watch(self, seconds: float, *arguments: object) -> tuple[subprocess.Popen, Path]:
        out = self.directory / "watched.json"
        process = subprocess.Popen(
            [sys.executable, CHECKERS / "secrets_leaked.py", "--secrets-file", self.secrets, "--watch-argv", str(seconds), "--out", out, *map(str, arguments)],
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.addCleanup(lambda: (process.kill(), process.wait()))
        deadline = time.monotonic() + 20
        while not out.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        return process, out

    def test_a_watch_sees_what_lives_shortly_and_what_calls_exec(self) -> None:
        logs = self.directory / "logs"
        logs.mkdir()
        process, out = self.watch(60, "--watch-logs", logs)
        self.start("sh", "-c", "sleep 0.6; :", self.canary).wait()
        self.start("sh", "-c", """sleep 2.5; exec sh -c 'sleep 30; :' "$C" """, C=self.canary)
        log = logs / "0.log"
        log.write_text("first\n")
        time.sleep(2)
        with log.open("a") as file:
            file.write(f"then {self.canary}\n")
        time.sleep(3)
        process.send_signal(signal.SIGTERM)
        self.assertEqual(process.wait(timeout=20), 1)
        result = json.loads(out.read_text())
        places = [entry["place"] for entry in result["places"]]
        self.assertTrue(result["finished"])
        self.assertEqual(sum(place.startswith("argv of process") for place in places), 2, result)
        self.assertIn(str(log), places)
        self.assertLess(result["cpuPercent"], 8, result)
        code, merged = self.ask("--watched", out)
        self.assertEqual((code, merged["secretsLeaked"]), (1, len(places)))

    def test_a_watch_that_has_not_ended_is_no_zero(self) -> None:
        process, out = self.watch(60)
        self.assertEqual(self.ask("--watched", out)[0], 3)
        process.send_signal(signal.SIGTERM)
        self.assertEqual(process.wait(timeout=20), 0)
        self.assertEqual(self.ask("--watched", out)[0], 0)


# Only what it adds: the tests of Places are its parent's.
for name in [name for name in dir(Places) if name.startswith("test_")]:
    setattr(Processes, name, None)

if __name__ == "__main__":
    unittest.main()

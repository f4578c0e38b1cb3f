"""Replicas, images and flags: what may differ, and what may not."""

import copy
import unittest

from workloads import capture, differences  # noqa: F401 - capture is run against a cluster only

OLD, NEW = "registry.example/server:1", "registry.example/server@sha256:bb"
STATE = {
    "workloads": {
        "server": {
            "replicas": 2, "ready": 2, "updated": 2, "observed": True, "paused": False, "pods": 2,
            "images": {"server": OLD}, "running": {"server": ["registry.example/server@sha256:aa"]}, "environment": {"server": "sha256:1"},
        }
    },
    "autoscalers": {"server": {"minReplicas": 1, "maxReplicas": 4}},
    "cronJobs": {"clean": {"suspend": False}},
    "jobs": {"backfill": {"suspend": False, "active": 1}},
    "configs": {"flags": {"maintenance": "false"}, "config": {"config.yaml": "a"}},
}  # fmt: skip


def changed(**paths) -> dict:
    """A copy of STATE; `server__ready=1` changes the workload, `configs={…}` a whole part."""
    state = copy.deepcopy(STATE)
    for path, value in paths.items():
        workload, _, key = path.partition("__")
        if key:
            state["workloads"][workload][key] = value
        else:
            state[path] = value
    return state


class Workloads(unittest.TestCase):
    def ask(self, after: dict, images=None, configs=(), appear=()) -> list[str]:
        return differences(STATE, after, images or {}, list(configs), list(appear))

    def test_the_same_is_the_same(self) -> None:
        self.assertEqual(self.ask(changed()), [])

    def test_each_difference_is_named(self) -> None:
        for line, after in {
            "replicas is 0, expected 2": changed(server__replicas=0, server__ready=0, server__updated=0, server__pods=0),
            "1 ready of 2 replicas": changed(server__ready=1),
            "3 pods of 2 replicas": changed(server__pods=3),
            "image of server is other": changed(server__images={"server": "other"}),
            "runs ['sha256:bb'], expected ['sha256:aa']": changed(server__running={"server": ["x@sha256:bb"]}),
            "environment is": changed(server__environment={"server": "sha256:2"}),
            "has not seen": changed(server__observed=False),
            "workload server: missing": changed(workloads={}),
            "maintenance is 'true', expected 'false'": changed(configs=STATE["configs"] | {"flags": {"maintenance": "true"}}),
            "config config: missing": changed(configs={"flags": {"maintenance": "false"}}),
            "config more: not expected": changed(configs=STATE["configs"] | {"more": {}}),
            "cronJobs clean": changed(cronJobs={"clean": {"suspend": True}}),
            "jobs backfill": changed(jobs={"backfill": {"suspend": True, "active": 0}}),
            "autoscalers server": changed(autoscalers={"server": {"minReplicas": 1, "maxReplicas": 1}}),
        }.items():
            with self.subTest(line):
                found = self.ask(after)
                self.assertTrue(any(line in one for one in found), found)

    def test_an_upgrade_changes_what_was_named_and_must_change_it(self) -> None:
        images = {"server/server": NEW}
        upgraded = changed(server__images={"server": NEW}, server__running={"server": ["x@sha256:bb"]}, configs=STATE["configs"] | {"config": {"config.yaml": "b"}, "prior-1": {}})
        self.assertEqual(self.ask(upgraded, images, ["config"], ["prior-"]), [])
        self.assertTrue(self.ask(changed(), images))
        self.assertIn("config config: has not changed", self.ask(changed(), configs=["config"]))
        self.assertTrue(self.ask(upgraded | changed(server__images={"server": NEW}), images, ["config"], ["prior-"]))
        self.assertIn("image nobody/server: there is no such container", self.ask(changed(), {"nobody/server": NEW}))


if __name__ == "__main__":
    unittest.main()

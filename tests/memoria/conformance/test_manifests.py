"""The manifests: every pod fits PodSecurity "restricted", and what refers to something finds it."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml

from support.memoria import APP, ROOT, VERSIONS

MANIFESTS = ROOT / "manifests"


def documents(directory: Path):
    text = "\n---\n".join(path.read_text() for path in sorted(directory.glob("*.yaml")))
    return [document for document in yaml.safe_load_all(text.replace("${PG_MAJOR}", "15")) if document]


@pytest.mark.parametrize("directory", [MANIFESTS, MANIFESTS / "sqlite"], ids=["postgresql", "sqlite"])
def test_every_pod_is_restricted_and_its_references_exist(directory):
    found = documents(directory)
    names = {(document["kind"], document["metadata"]["name"]) for document in found}
    assert all("namespace" not in document["metadata"] for document in found)
    workloads = [document for document in found if document["kind"] in ("Deployment", "StatefulSet")]
    assert len(workloads) in (1, 5)
    for workload in workloads:
        pod = workload["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == (999 if workload["kind"] == "StatefulSet" else 1000)
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert workload["spec"]["selector"]["matchLabels"].items() <= workload["spec"]["template"]["metadata"]["labels"].items()
        claims = {claim["metadata"]["name"] for claim in workload["spec"].get("volumeClaimTemplates", [])}
        volumes = {volume["name"] for volume in pod["volumes"]} | claims
        for volume in pod["volumes"]:
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in names
        for container in pod["containers"]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["readOnlyRootFilesystem"] is True
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert {mount["name"] for mount in container["volumeMounts"]} == volumes
            assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"]}
            for entry in container.get("env", []):
                if "valueFrom" in entry:
                    assert ("Secret", entry["valueFrom"]["secretKeyRef"]["name"]) in names


def test_the_passwords_in_the_urls_are_those_of_the_secrets():
    secrets = {d["metadata"]["name"]: d["stringData"] for d in documents(MANIFESTS) if d["kind"] == "Secret"}
    for secret, key in (("memoria-db", "password"), ("memoria-db-admin", "admin-password")):
        password = secrets["memoria-postgres"][key]
        assert set('@%/" ') <= set(password)
        assert unquote(urlsplit(secrets[secret]["url"]).password) == password


def test_the_configuration_is_the_old_baseline_with_the_overrides():
    maps = {d["metadata"]["name"]: d["data"] for d in documents(MANIFESTS) if d["kind"] == "ConfigMap"}
    config = yaml.safe_load((VERSIONS / "0.9.0.config.example.yaml").read_text())
    # The URL is the environment's business.
    del config["database"]["connection_string"]
    overrides = yaml.safe_load(maps["memoria-overrides"]["config.yaml"])
    for key, value in overrides.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    assert yaml.safe_load(maps["memoria-config"]["config.yaml"]) == config


def test_the_baselines_differ_in_values_and_a_list():
    old = yaml.safe_load((VERSIONS / "0.9.0.config.example.yaml").read_text())
    new = yaml.safe_load((APP / "config.example.yaml").read_text())
    assert list(old) == list(new) == ["debug", "verbose", "database", "agents", "memory", "integrations", "policy"]
    assert old["database"] == new["database"]
    assert old["agents"]["max_parallel"] != new["agents"]["max_parallel"]
    assert old["policy"]["retention_rules"] != new["policy"]["retention_rules"]

"""deploy/kubernetes against Kubernetes' own schemas, the restricted pod security standard, the code, and a database."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import sqlalchemy as sa
import yaml

from gateway.index import Index
from gateway.index_schema import instance
from gateway.instance import UNFINISHED, State
from tests.conftest import empty_database
from tests.fakes import FakeClock
from tests.unit.test_frontdoor_deploy import names_of_settings, parse

FOLDER = Path(__file__).resolve().parents[2] / "deploy/kubernetes"
KINDS = ("Deployment", "Job")
VERSION = "1.31"
#: What is used of KEDA's API, keda.sh/v1alpha1 (https://keda.sh/docs/latest/reference/scaledobject-spec/).
_BEHAVIOR: dict[str, Any] = {
    "type": "object", "additionalProperties": False, "properties": {
        "stabilizationWindowSeconds": {"type": "integer", "minimum": 0, "maximum": 3600},
        "policies": {"type": "array", "items": {
            "type": "object", "additionalProperties": False, "required": ["type", "value", "periodSeconds"],
            "properties": {"type": {"enum": ["Pods", "Percent"]}, "value": {"type": "integer", "minimum": 1},
                           "periodSeconds": {"type": "integer", "minimum": 1, "maximum": 1800}},
        }},
    },
}  # fmt: skip
KEDA: dict[str, Any] = {
    "ScaledObject": {
        "type": "object", "additionalProperties": False, "required": ["scaleTargetRef", "triggers"], "properties": {
            "scaleTargetRef": {"type": "object", "required": ["name"]},
            **{name: {"type": "integer", "minimum": 0} for name in
               ("minReplicaCount", "maxReplicaCount", "pollingInterval", "cooldownPeriod")},
            "fallback": {"type": "object", "required": ["failureThreshold", "replicas"]},
            "advanced": {"type": "object", "additionalProperties": False, "properties": {
                "horizontalPodAutoscalerConfig": {"type": "object", "additionalProperties": False, "properties": {
                    "behavior": {"type": "object", "additionalProperties": False,
                                 "properties": {"scaleUp": _BEHAVIOR, "scaleDown": _BEHAVIOR}}}}}},
            "triggers": {"type": "array", "minItems": 1, "items": {
                "type": "object", "additionalProperties": False, "required": ["type", "metadata"], "properties": {
                    "type": {"const": "postgresql"},
                    "metadata": {"type": "object", "additionalProperties": {"type": "string"}},
                    "authenticationRef": {"type": "object", "required": ["name"]}}}},
        },
    },
    "TriggerAuthentication": {
        "type": "object", "additionalProperties": False, "required": ["secretTargetRef"], "properties": {
            "secretTargetRef": {"type": "array", "items": {
                "type": "object", "additionalProperties": False, "required": ["parameter", "name", "key"],
                "properties": {name: {"type": "string"} for name in ("parameter", "name", "key")}}}},
    },
}  # fmt: skip


def documents(folder: Path) -> Iterator[dict[str, Any]]:
    """Every resource that the kustomization of a folder lists."""
    listed = yaml.safe_load((folder / "kustomization.yaml").read_text("utf-8"))
    for name in listed["resources"]:
        if (folder / name).is_file():
            yield from yaml.safe_load_all((folder / name).read_text("utf-8"))


BASE = list(documents(FOLDER / "base"))
ALL = BASE + [each for part in ("components/gpu", "components/keda", "overlays/production")
              for each in documents(FOLDER / part)]  # fmt: skip
WORKLOADS = {each["metadata"]["name"]: each for each in ALL if each["kind"] in KINDS}


@pytest.mark.parametrize("number", range(len(ALL)))
def test_kubernetes_takes_every_resource(number: int) -> None:
    found = ALL[number]
    if found["apiVersion"].startswith("keda.sh/"):
        jsonschema.validate(found["spec"], KEDA[found["kind"]])
    else:
        kubernetes_validate.validate(found, VERSION, strict=True)


def test_every_file_is_listed_and_every_name_is_there() -> None:
    for folder in ("base", "components/gpu", "components/keda", "overlays/production"):
        listed = yaml.safe_load((FOLDER / folder / "kustomization.yaml").read_text("utf-8"))
        files = {path.name for path in (FOLDER / folder).glob("*.yaml")} - {"kustomization.yaml"}
        assert files == {name for name in listed["resources"] if not name.startswith("..")}
        for reference in (*listed["resources"], *listed.get("components", ())):
            assert (FOLDER / folder / reference).exists()
        for patch in listed.get("patches", ()):
            target = patch["target"]
            assert any(e["kind"] == target["kind"] and e["metadata"]["name"] == target["name"] for e in BASE)


@pytest.mark.parametrize("name", sorted(WORKLOADS))
def test_pods_are_restricted_and_bounded(name: str) -> None:
    """Pod Security Standards, "Restricted", and a root that nobody writes to."""
    spec = WORKLOADS[name]["spec"]["template"]["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True and spec["securityContext"]["runAsUser"] == 10001
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    volumes = {each["name"] for each in spec["volumes"]}
    for container in (*spec["containers"], *spec.get("initContainers", ())):
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False and context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["limits"]["memory"] and container["resources"]["requests"]["cpu"]
        assert {each["name"] for each in container["volumeMounts"]} <= volumes
        parse(container["args"])
    main = spec["containers"][0]
    if name not in ("migrate", "sweep"):
        assert main["livenessProbe"]
        if command := main["livenessProbe"].get("exec"):
            assert command["command"][0] == "palimpsest"
            parse(command["command"][1:])


def test_settings_are_ours_and_secrets_are_references() -> None:
    settings = next(each for each in BASE if each["kind"] == "ConfigMap")["data"]
    assert set(settings) <= names_of_settings()
    assert not any(each["kind"] == "Secret" for each in ALL)
    containers = [each["spec"]["template"]["spec"]["containers"][0] for each in WORKLOADS.values()]
    mounted = {mount["mountPath"] for container in containers for mount in container["volumeMounts"]}
    for name, value in settings.items():
        if name.endswith(("_FILE", "_CERT", "_KEY", "_CA")):
            assert value.rsplit("/", 1)[0] in mounted, name
    for patch in yaml.safe_load((FOLDER / "overlays/production/kustomization.yaml").read_text("utf-8"))["patches"]:
        for change in yaml.safe_load(patch["patch"]):
            assert change["path"].removeprefix("/data/") in names_of_settings()


def test_a_drained_node_leaves_one_of_each_and_nothing_else_comes_in() -> None:
    kept = {each["metadata"]["name"] for each in BASE if each["kind"] == "PodDisruptionBudget"}
    assert kept == set(WORKLOADS) - {"migrate", "sweep", "worker-gpu"}
    for name in kept:
        assert WORKLOADS[name]["spec"]["replicas"] >= 2
    policies = {each["metadata"]["name"]: each["spec"] for each in ALL if each["kind"] == "NetworkPolicy"}
    assert (
        policies["palimpsest-closed"]["policyTypes"] == ["Ingress"] and "ingress" not in policies["palimpsest-closed"]
    )
    opened = {p["port"] for spec in policies.values() for rule in spec.get("ingress", ()) for p in rule["ports"]}
    assert opened == {2762, 8080}


def test_keda_scales_by_the_age_of_what_waits(postgresql_url: str) -> None:
    """The query of the manifest, on the real schema: seconds of the oldest row that is due and leased by nobody."""
    trigger = next(each for each in ALL if each["kind"] == "ScaledObject")["spec"]["triggers"][0]
    query = trigger["metadata"]["query"]
    assert all(f"'{state}'" in query for state in UNFINISHED)
    now = time.time()
    with empty_database(postgresql_url) as url:
        index = Index(url, clock=FakeClock(now))
        index.create()
        with index.read() as conn:
            assert float(conn.execute(sa.text(query)).scalar_one()) == 0

        def row(number: int, age: float, **more: Any) -> dict[str, Any]:
            digest = f"{number:064x}"
            values = {
                "sop_uid": f"1.2.{number}", "sop_class": "1.2", "transfer_syntax": "1.2", "digest": digest,
                "dataset_digest": digest, "size": 1, "source": "dimse", "calling_ae": "A", "priority": 5,
                "received_at": now - age, "state": State.RECEIVED, "attempts": 0, "current": True, "conflict": False,
                "due_at": None, "lease_until": None,
            }  # fmt: skip
            return values | more

        rows = [row(1, 300), row(2, 900, state=State.ARCHIVED), row(3, 800, due_at=now + 3600),
                row(4, 700, lease_until=now + 3600), row(5, 400, lease_until=now - 60)]  # fmt: skip
        with index.write() as conn:
            conn.execute(instance.insert(), rows)
        with index.read() as conn:
            assert 400 <= float(conn.execute(sa.text(query)).scalar_one()) < 700
        index.close()

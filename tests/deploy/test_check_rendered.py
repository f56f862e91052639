"""The rendered overlays: what they promise, and that the check finds each way to break it."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.check import references, safety
from deploy.check.__main__ import MANIFESTS, defects, overlay_defects
from deploy.check.references import (
    Manifests,
    containers,
    matches,
    namespace,
    pod_labels,
    pod_spec,
)
from deploy.check.render import Document, render
from tests.deploy.manifests import TOOL, Copy

pytestmark = pytest.mark.skipif(TOOL is None, reason="needs kubectl or kustomize")
OWNER = "separate-institutions/model-owner"
NODE = "separate-institutions/data-node"


def manifests(overlay: str, root: Path = MANIFESTS) -> Manifests:
    assert TOOL is not None
    return Manifests(render(TOOL, root / "overlays" / overlay))


def said(copy: Copy, overlay: str) -> list[str]:
    """What the rules, without the schemas, have to say of one overlay."""
    found = manifests(overlay, copy.root)
    return [*references.defects(found), *safety.defects(found)]


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    return Copy(tmp_path)


@pytest.fixture(scope="module")
def cluster() -> Manifests:
    return manifests("single-cluster")


def test_the_overlays_of_the_repository_are_sound() -> None:
    assert list(defects(MANIFESTS, TOOL)) == []


def test_an_overlay_that_cannot_be_rendered_is_named(copy: Copy) -> None:
    copy.replace("overlays/single-cluster/hospital-a/kustomization.yaml", "merge", "replace-it")
    assert TOOL is not None
    overlay = copy.root / "overlays/single-cluster"
    found = list(overlay_defects(copy.root, overlay, TOOL))
    assert len(found) == 1
    assert found[0].startswith("overlays/single-cluster: it cannot be rendered: ")


def test_each_member_has_a_namespace_and_every_role(cluster: Manifests) -> None:
    roles: dict[str, set[str]] = {}
    for workload in cluster.of_kind("Deployment"):
        component = pod_labels(workload)["app.kubernetes.io/component"]
        roles.setdefault(namespace(workload), set()).add(component)
    names = ("model-owner", "crypto-provider", "hospital-a", "hospital-b", "hospital-c")
    assert roles == {f"primia-{name}": {"api", "worker", "beat"} for name in names}


def test_hospitals_have_names_of_their_own(cluster: Manifests) -> None:
    names = {
        namespace(document): document["data"]["PRIMIA_NAME"]
        for document in cluster.of_kind("ConfigMap")
    }
    assert {space: name for space, name in names.items() if "hospital" in name} == {
        f"primia-hospital-{letter}": f"hospital-{letter}" for letter in "abc"
    }


def test_one_beat_migrates_before_it_starts(cluster: Manifests) -> None:
    migrating = [
        (pod_labels(workload)["app.kubernetes.io/component"], workload["spec"]["replicas"])
        for workload in cluster.of_kind("Deployment")
        for container in pod_spec(workload).get("initContainers", [])
        if container["args"] == ["migrate"]
    ]
    assert migrating == [("beat", 1)] * 5


def test_api_and_worker_share_a_volume_and_a_node(cluster: Manifests) -> None:
    for workload in cluster.of_kind("Deployment"):
        claims = [v for v in pod_spec(workload)["volumes"] if v["name"] == "state"]
        shares = pod_labels(workload)["app.kubernetes.io/component"] != "beat"
        assert ("persistentVolumeClaim" in claims[0]) == shares
        assert ("affinity" in pod_spec(workload)) == shares


def test_only_the_owners_api_reaches_its_session_host() -> None:
    owner = manifests(OWNER)
    worker = _workload(owner, "worker")
    ports = {port["name"]: port["containerPort"] for port in containers(worker)[0]["ports"]}
    settings = safety.environment(owner, worker, containers(worker)[0])
    assert ports == {"sessions": int(settings["PRIMIA_SESSION_PORT"])}
    assert settings["PRIMIA_SESSION_URL_HOST"] == "10.0.0.1"  # the pod's own address
    assert _may_enter(owner, worker, ports["sessions"]) == [_workload(owner, "api")]


def test_nobody_reaches_a_data_nodes_worker(cluster: Manifests) -> None:
    worker = _workload(cluster, "worker", "primia-hospital-a")
    assert _may_enter(cluster, worker, 8000) == []


def test_a_gpu_is_asked_for_by_the_worker_alone() -> None:
    node = manifests(NODE)
    for workload in node.of_kind("Deployment"):
        component = pod_labels(workload)["app.kubernetes.io/component"]
        limits = containers(workload)[0]["resources"]["limits"]
        assert ("nvidia.com/gpu" in limits) == (component == "worker")
        # The API is where the worker is: it mounts the same volume.
        assert ("nodeSelector" in pod_spec(workload)) == (component in ("api", "worker"))


def test_a_cluster_without_gpus_asks_for_none(cluster: Manifests) -> None:
    for workload in cluster.workloads:
        assert "nodeSelector" not in pod_spec(workload)
        assert "nvidia.com/gpu" not in containers(workload)[0]["resources"]["limits"]


def test_a_shared_volume_needs_no_shared_node(copy: Copy) -> None:
    copy.replace(
        f"overlays/{NODE}/kustomization.yaml", "components/gpu", "components/shared-volume"
    )
    found = manifests(NODE, copy.root)
    assert said(copy, NODE) == []
    assert [c["spec"]["accessModes"] for c in found.of_kind("PersistentVolumeClaim")] == [
        ["ReadWriteMany"]
    ]
    assert all("affinity" not in pod_spec(workload) for workload in found.workloads)


def _workload(found: Manifests, component: str, space: str | None = None) -> Document:
    return next(
        workload
        for workload in found.of_kind("Deployment")
        if pod_labels(workload)["app.kubernetes.io/component"] == component
        and space in (None, namespace(workload))
    )


def _may_enter(found: Manifests, target: Document, port: int) -> list[Document]:
    """The workloads of the target's namespace that a policy lets in; fails on any other peer."""
    allowed = []
    for policy in found.of_kind("NetworkPolicy"):
        mine = namespace(policy) == namespace(target)
        if not mine or not matches(policy["spec"]["podSelector"], pod_labels(target)):
            continue
        for rule in policy["spec"].get("ingress", []):
            if port in [each["port"] for each in rule["ports"]]:
                for peer in rule["from"]:
                    assert set(peer) == {"podSelector"}
                    allowed += found.selected(policy, peer["podSelector"])
    return allowed


BREAKS = [
    # file, what is there, what is put there instead, overlay, what is said
    (
        "base/service/service.yaml",
        "component: api",
        "component: apis",
        OWNER,
        "Service model-owner-api: it selects no pod in primia-model-owner",
    ),
    (
        "base/service/service.yaml",
        "targetPort: http",
        "targetPort: https",
        OWNER,
        "Service model-owner-api: no pod behind it has the port https",
    ),
    (
        "base/service/api.yaml",
        "claimName: state",
        "claimName: stat",
        OWNER,
        "Deployment model-owner-api: there is no PersistentVolumeClaim stat in primia-model-owner",
    ),
    (
        "base/service/worker.yaml",
        "serviceAccountName: service",
        "serviceAccountName: other",
        OWNER,
        "Deployment model-owner-worker: there is no ServiceAccount other in primia-model-owner",
    ),
    (
        "base/service/worker.yaml",
        "                  primia.grid/state: shared",
        "                  primia.grid/state: other",
        OWNER,
        "Deployment model-owner-worker: its affinity does not take its own pods",
    ),
    (
        "base/service/api.yaml",
        "- name: http\n              containerPort",
        "- name: web\n              containerPort",
        OWNER,
        "Deployment model-owner-api: readinessProbe names no port of its own: http",
    ),
    (
        "base/service/api.yaml",
        "- name: tmp\n          emptyDir",
        "- name: temporary\n          emptyDir",
        OWNER,
        "Deployment model-owner-api: api mounts no volume tmp",
    ),
    (
        "base/model-owner/network.yaml",
        "component: worker\n  policyTypes",
        "component: workers\n  policyTypes",
        OWNER,
        "NetworkPolicy model-owner-sessions: it selects no pod in primia-model-owner",
    ),
    (
        "overlays/separate-institutions/model-owner/ingress.yaml",
        "name: model-owner-api",
        "name: model-owner",
        OWNER,
        "Ingress model-owner: there is no Service model-owner",
    ),
    (
        "overlays/separate-institutions/model-owner/ingress.yaml",
        "- hosts: [model-owner.example.org]",
        "- hosts: [owner.example.org]",
        OWNER,
        "Ingress model-owner: model-owner.example.org has no TLS",
    ),
    (
        "base/service/worker.yaml",
        "readOnlyRootFilesystem: true",
        "readOnlyRootFilesystem: false",
        OWNER,
        "Deployment model-owner-worker: worker: its root file system must be read-only",
    ),
    (
        "base/service/worker.yaml",
        "runAsNonRoot: true",
        "runAsNonRoot: false",
        OWNER,
        "Deployment model-owner-worker: it must run as a numeric user that is not root",
    ),
    (
        "base/service/beat.yaml",
        "drop: [ALL]",
        "drop: [NET_RAW]",
        OWNER,
        "Deployment model-owner-beat: migrate: it must drop all capabilities",
    ),
    (
        "base/model-owner/settings.env",
        "PRIMIA_SESSION_PORT=8001",
        "PRIMIA_SESION_PORT=8001",
        OWNER,
        "Deployment model-owner-api: PRIMIA_SESION_PORT is no setting of the service",
    ),
    (
        "base/model-owner/settings.env",
        "PRIMIA_THREADS=4",
        "PRIMIA_THREADS=0",
        OWNER,
        "Deployment model-owner-api: api: The settings are not usable: PRIMIA_THREADS: "
        "Input should be greater than or equal to 1.",
    ),
    (
        "overlays/separate-institutions/data-node/kustomization.yaml",
        "PRIMIA_OWNER_URL=https://",
        "PRIMIA_OWNER_URL=http://",
        NODE,
        "Deployment data-node-api: api: The settings are not usable: PRIMIA_OWNER_URL is plain "
        "http beyond this machine; use https, or set PRIMIA_ALLOW_PLAIN_HTTP=true where the "
        "network itself is encrypted.",
    ),
    (
        "base/service/network.yaml",
        "policyTypes: [Ingress, Egress]",
        "policyTypes: [Ingress]",
        NODE,
        "Namespace primia-data-node: no policy denies all traffic by default",
    ),
    (
        "base/service/network.yaml",
        "    - from:\n        - podSelector: {}\n",
        "    - from:\n        - namespaceSelector: {}\n",
        NODE,
        "NetworkPolicy data-node-api: it opens a data node to others than its own namespace",
    ),
    (
        "components/namespace/namespace.yaml",
        "restricted",
        "baseline",
        NODE,
        "Namespace primia-data-node: it must enforce the restricted pod security standard",
    ),
]


@pytest.mark.parametrize(("file", "old", "new", "overlay", "line"), BREAKS)
def test_a_broken_manifest_is_named(
    copy: Copy, file: str, old: str, new: str, overlay: str, line: str
) -> None:
    copy.replace(file, old, new)
    assert line in said(copy, overlay)


def test_a_secret_in_the_repository_is_refused(copy: Copy) -> None:
    text = "apiVersion: v1\nkind: Secret\nmetadata:\n  name: primia-secrets\n"
    (copy.root / "base/service/account.yaml").write_text(text)
    assert "Secret model-owner-primia-secrets: a secret has no place in the repository" in said(
        copy, OWNER
    )


@pytest.mark.parametrize(
    ("selector", "holds"),
    [
        ({}, True),
        ({"matchLabels": {"a": "1"}}, True),
        ({"matchLabels": {"a": "2"}}, False),
        ({"matchLabels": {"a": "1", "b": "1"}}, False),
        ({"matchExpressions": [{"key": "a", "operator": "In", "values": ["0", "1"]}]}, True),
        ({"matchExpressions": [{"key": "a", "operator": "In", "values": ["0"]}]}, False),
        ({"matchExpressions": [{"key": "b", "operator": "Exists"}]}, False),
    ],
)
def test_selectors(selector: Document, holds: bool) -> None:
    assert matches(selector, {"a": "1"}) is holds


def test_a_selector_of_another_kind_is_not_guessed() -> None:
    with pytest.raises(ValueError, match="NotIn"):
        matches({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": []}]}, {})

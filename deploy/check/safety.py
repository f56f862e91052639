"""What every pod, namespace and policy must be, and settings that the services would accept."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from deploy.check.references import (
    Manifests,
    containers,
    namespace,
    pod_labels,
    pod_spec,
)
from deploy.check.render import Document
from deploy.check.sources import title
from primia.chassis.settings import ServiceSettings
from primia.errors import UnsafeSettings

SETTINGS = {
    "model-owner": ("services.model_owner.settings", "ModelOwnerSettings"),
    "data-node": ("services.data_node.settings", "DataNodeSettings"),
    "crypto-provider": ("services.crypto_provider.settings", "CryptoProviderSettings"),
}
# Stand for what the Secret brings; nothing is opened with them.
_FROM_SECRET = {
    "DATABASE_URL": "postgresql://primia:p@postgresql:5432/primia",
    "BROKER_URL": "redis://:p@valkey:6379/0",
    "PRIMIA_METRICS_TOKEN": "token",
}
_FROM_POD = {"status.podIP": "10.0.0.1"}


def defects(manifests: Manifests) -> Iterator[str]:
    for secret in manifests.of_kind("Secret"):
        yield f"{title(secret)}: a secret has no place in the repository"
    for workload in manifests.workloads:
        yield from _pod(workload)
        yield from _settings(manifests, workload)
    yield from _namespaces(manifests)
    yield from _data_nodes_stay_closed(manifests)


def _pod(workload: Document) -> Iterator[str]:
    spec, name = pod_spec(workload), title(workload)
    context = spec.get("securityContext", {})
    if context.get("runAsNonRoot") is not True or not context.get("runAsUser"):
        yield f"{name}: it must run as a numeric user that is not root"
    if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield f"{name}: it must have the seccomp profile RuntimeDefault"
    if spec.get("automountServiceAccountToken") is not False:
        yield f"{name}: it must not mount a token of the cluster"
    for container in containers(workload):
        yield from _container(f"{name}: {container['name']}", container)


def _container(name: str, container: Document) -> Iterator[str]:
    context = container.get("securityContext", {})
    if context.get("readOnlyRootFilesystem") is not True:
        yield f"{name}: its root file system must be read-only"
    if context.get("allowPrivilegeEscalation") is not False:
        yield f"{name}: it must not gain privileges"
    if context.get("capabilities", {}).get("drop") != ["ALL"]:
        yield f"{name}: it must drop all capabilities"
    resources = container.get("resources", {})
    if not {"cpu", "memory"} <= resources.get("requests", {}).keys():
        yield f"{name}: it must request CPU and memory"
    if "memory" not in resources.get("limits", {}):
        yield f"{name}: it must have a memory limit"


def _settings(manifests: Manifests, workload: Document) -> Iterator[str]:
    place = SETTINGS.get(pod_labels(workload).get("app.kubernetes.io/name", ""))
    if place is None:
        return
    settings: type[ServiceSettings] = getattr(importlib.import_module(place[0]), place[1])
    known = variables(settings)
    for container in containers(workload):
        given = environment(manifests, workload, container)
        for variable in sorted(given.keys() - known):
            if variable.startswith("PRIMIA_"):
                yield f"{title(workload)}: {variable} is no setting of the service"
        with _only(given):
            try:
                settings.from_environment()
            except UnsafeSettings as error:
                yield f"{title(workload)}: {container['name']}: {error}"


def variables(settings: type[ServiceSettings]) -> set[str]:
    """The names of the environment variables that a service reads."""
    return {
        field.validation_alias
        if isinstance(field.validation_alias, str)
        else f"PRIMIA_{name.upper()}"
        for name, field in settings.model_fields.items()
    }


def environment(manifests: Manifests, workload: Document, container: Document) -> dict[str, str]:
    """What the container would find, with stand-ins for what only the cluster knows."""
    given: dict[str, str] = {}
    for source in container.get("envFrom", []):
        for document in manifests.of_kind("ConfigMap"):
            same = document["metadata"]["name"] == source["configMapRef"]["name"]
            if same and namespace(document) == namespace(workload):
                given |= document["data"]
    for variable in container.get("env", []):
        origin = variable.get("valueFrom", {})
        if "secretKeyRef" in origin:
            given[variable["name"]] = _FROM_SECRET.get(variable["name"], "")
        elif "fieldRef" in origin:
            given[variable["name"]] = _FROM_POD[origin["fieldRef"]["fieldPath"]]
        else:
            given[variable["name"]] = variable["value"]
    return given


@contextmanager
def _only(given: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(given)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _namespaces(manifests: Manifests) -> Iterator[str]:
    policies = manifests.of_kind("NetworkPolicy")
    closed = {
        namespace(policy)
        for policy in policies
        if policy["spec"]["podSelector"] == {}
        and set(policy["spec"]["policyTypes"]) == {"Ingress", "Egress"}
        and not policy["spec"].get("ingress")
        and not policy["spec"].get("egress")
    }
    for document in manifests.of_kind("Namespace"):
        if document["metadata"]["name"] not in closed:
            yield f"{title(document)}: no policy denies all traffic by default"
        level = "pod-security.kubernetes.io/enforce"
        if document["metadata"].get("labels", {}).get(level) != "restricted":
            yield f"{title(document)}: it must enforce the restricted pod security standard"


def _data_nodes_stay_closed(manifests: Manifests) -> Iterator[str]:
    """A data node calls out; from beyond its own namespace nobody calls it."""
    nodes = {
        namespace(workload)
        for workload in manifests.workloads
        if pod_labels(workload).get("app.kubernetes.io/name") == "data-node"
    }
    for ingress in manifests.of_kind("Ingress"):
        if namespace(ingress) in nodes:
            yield f"{title(ingress)}: a data node has no Ingress"
    for policy in manifests.of_kind("NetworkPolicy"):
        peers = [peer for rule in policy["spec"].get("ingress", []) for peer in rule["from"]]
        foreign = any("namespaceSelector" in peer or "ipBlock" in peer for peer in peers)
        if namespace(policy) in nodes and foreign:
            yield f"{title(policy)}: it opens a data node to others than its own namespace"

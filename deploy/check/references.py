"""Rendered manifests that name one another: every name, label and port leads somewhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from deploy.check.render import Document
from deploy.check.sources import title

# Made by the institution, outside the repository: see docs/operations.md.
OUTSIDE = {
    ("Secret", "primia-secrets"),
    ("Secret", "primia-stores"),
    ("ConfigMap", "primia-enrolment"),
    ("PersistentVolumeClaim", "images"),
}
_WORKLOADS = ("Deployment", "StatefulSet")


class Manifests:
    """What one overlay renders to."""

    def __init__(self, documents: list[Document]) -> None:
        self.documents = documents
        self.workloads = self.of_kind(*_WORKLOADS)
        self._names = {
            (document["kind"], namespace(document), document["metadata"]["name"])
            for document in documents
        }

    def of_kind(self, *kinds: str) -> list[Document]:
        return [document for document in self.documents if document["kind"] in kinds]

    def has(self, kind: str, near: Document, name: str) -> bool:
        known = (kind, namespace(near), name) in self._names
        return known or (kind, name) in OUTSIDE

    def selected(self, near: Document, selector: Document) -> list[Document]:
        """The workloads of this namespace whose pods the label selector takes."""
        return [
            workload
            for workload in self.workloads
            if namespace(workload) == namespace(near) and matches(selector, pod_labels(workload))
        ]


def namespace(document: Document) -> str:
    return str(document["metadata"].get("namespace", ""))


def pod_labels(workload: Document) -> dict[str, str]:
    return dict(workload["spec"]["template"]["metadata"]["labels"])


def pod_spec(workload: Document) -> Document:
    return dict(workload["spec"]["template"]["spec"])


def containers(workload: Document) -> list[Document]:
    spec = pod_spec(workload)
    return [*spec.get("initContainers", []), *spec["containers"]]


def matches(selector: Document, labels: dict[str, str]) -> bool:
    """A label selector of Kubernetes; the operators In and Exists are the ones in use here."""
    wanted = selector.get("matchLabels", {})
    if any(labels.get(key) != value for key, value in wanted.items()):
        return False
    return all(_holds(rule, labels) for rule in selector.get("matchExpressions", []))


def _holds(rule: Document, labels: dict[str, str]) -> bool:
    if rule["operator"] == "In":
        return labels.get(rule["key"]) in rule["values"]
    if rule["operator"] == "Exists":
        return rule["key"] in labels
    raise ValueError(f"the selector operator {rule['operator']} is not known to this check")


def defects(manifests: Manifests) -> Iterator[str]:
    for workload in manifests.workloads:
        yield from _workload(manifests, workload)
    for service in manifests.of_kind("Service"):
        yield from _service(manifests, service)
    for policy in manifests.of_kind("NetworkPolicy"):
        yield from _policy(manifests, policy)
    for ingress in manifests.of_kind("Ingress"):
        yield from _ingress(manifests, ingress)


def _workload(manifests: Manifests, workload: Document) -> Iterator[str]:
    if not matches(workload["spec"]["selector"], pod_labels(workload)):
        yield f"{title(workload)}: its selector does not take its own pods"
    for kind, name in _named_by(workload):
        if not manifests.has(kind, workload, name):
            yield f"{title(workload)}: there is no {kind} {name} in {namespace(workload)}"
    volumes = {volume["name"] for volume in pod_spec(workload).get("volumes", [])}
    volumes |= {c["metadata"]["name"] for c in workload["spec"].get("volumeClaimTemplates", [])}
    for container in containers(workload):
        for mount in container.get("volumeMounts", []):
            if mount["name"] not in volumes:
                yield f"{title(workload)}: {container['name']} mounts no volume {mount['name']}"
        ports = {port["name"] for port in container.get("ports", [])}
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            port = _probed(container.get(probe, {}))
            if port is not None and port not in ports:
                yield f"{title(workload)}: {probe} names no port of its own: {port}"
    for term in _affinity_terms(workload):
        if not matches(term["labelSelector"], pod_labels(workload)):
            # The first pod could never start: there would be none for it to be near.
            yield f"{title(workload)}: its affinity does not take its own pods"


def _named_by(workload: Document) -> Iterator[tuple[str, str]]:
    spec = pod_spec(workload)
    if "serviceAccountName" in spec:
        yield "ServiceAccount", spec["serviceAccountName"]
    for volume in spec.get("volumes", []):
        if "persistentVolumeClaim" in volume:
            yield "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]
        if "configMap" in volume:
            yield "ConfigMap", volume["configMap"]["name"]
        if "secret" in volume:
            yield "Secret", volume["secret"]["secretName"]
    for container in containers(workload):
        for source in container.get("envFrom", []):
            yield "ConfigMap", source["configMapRef"]["name"]
        for variable in container.get("env", []):
            if reference := variable.get("valueFrom", {}).get("secretKeyRef"):
                yield "Secret", reference["name"]


def _probed(probe: Document) -> Any:
    return (probe.get("httpGet") or probe.get("tcpSocket") or {}).get("port")


def _affinity_terms(workload: Document) -> list[Document]:
    near = pod_spec(workload).get("affinity", {}).get("podAffinity", {})
    return list(near.get("requiredDuringSchedulingIgnoredDuringExecution", []))


def _service(manifests: Manifests, service: Document) -> Iterator[str]:
    behind = manifests.selected(service, {"matchLabels": service["spec"]["selector"]})
    if not behind:
        yield f"{title(service)}: it selects no pod in {namespace(service)}"
    open_ports = {
        known
        for workload in behind
        for container in containers(workload)
        for port in container.get("ports", [])
        for known in (port["name"], port["containerPort"])
    }
    for port in service["spec"]["ports"]:
        target = port.get("targetPort", port["port"])
        if behind and target not in open_ports:
            yield f"{title(service)}: no pod behind it has the port {target}"


def _policy(manifests: Manifests, policy: Document) -> Iterator[str]:
    if not manifests.selected(policy, policy["spec"]["podSelector"]):
        yield f"{title(policy)}: it selects no pod in {namespace(policy)}"
    for way, side in (("ingress", "from"), ("egress", "to")):
        if way in policy["spec"] and way.capitalize() not in policy["spec"]["policyTypes"]:
            yield f"{title(policy)}: it has {way} rules, but is no policy of {way}"
        for rule in policy["spec"].get(way, []):
            if not rule.get(side):
                yield f"{title(policy)}: an {way} rule without {side} is open to everybody"


def _ingress(manifests: Manifests, ingress: Document) -> Iterator[str]:
    secured = {host for tls in ingress["spec"].get("tls", []) for host in tls["hosts"]}
    for rule in ingress["spec"]["rules"]:
        if rule["host"] not in secured:
            yield f"{title(ingress)}: {rule['host']} has no TLS"
        for path in rule["http"]["paths"]:
            backend = path["backend"]["service"]
            if not manifests.has("Service", ingress, backend["name"]):
                yield f"{title(ingress)}: there is no Service {backend['name']}"

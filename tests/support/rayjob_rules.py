"""The rules of the Kubernetes objects in deploy/rayjob.yaml, as JSON schemas.

Names, types and choices of the fields that the file uses, as they are in KubeRay 1.5.1 and newer
(ray.io/v1: RayJob, RayCluster) and in Kubernetes 1.27 and newer (core/v1, networking.k8s.io/v1).
A field that is not listed is refused: an operator would prune a misspelt one without a word.
"""

from typing import Any

Schema = dict[str, Any]

STRING: Schema = {"type": "string", "minLength": 1}
TEXTS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
BOOLEAN: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
NAME: Schema = {"type": "string", "pattern": r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"}
QUANTITY: Schema = {"type": ["string", "integer"], "pattern": r"^[0-9]+(\.[0-9]+)?(m|[kMGTPE]i?)?$"}


def closed(*required: str, **fields: Schema) -> Schema:
    """An object with these fields and no others."""
    return {
        "type": "object",
        "properties": fields,
        "required": list(required),
        "additionalProperties": False,
    }


def choice(*values: str) -> Schema:
    return {"enum": list(values)}


def several(item: Schema) -> Schema:
    return {"type": "array", "items": item, "minItems": 1}


SELECTOR = closed(matchLabels=TEXTS)
SECCOMP = closed("type", type=choice("RuntimeDefault", "Localhost", "Unconfined"))
POD_SECURITY = closed(runAsNonRoot=BOOLEAN, runAsUser=COUNT, fsGroup=COUNT, seccompProfile=SECCOMP)
CONTAINER_SECURITY = closed(
    allowPrivilegeEscalation=BOOLEAN, capabilities=closed(drop=several(STRING))
)
QUANTITIES: Schema = {
    "type": "object",
    "properties": {"cpu": QUANTITY, "memory": QUANTITY, "nvidia.com/gpu": QUANTITY},
    "additionalProperties": False,
}
CONTAINER = closed(
    "name",
    "image",
    name=NAME,
    image=STRING,
    securityContext=CONTAINER_SECURITY,
    resources=closed(requests=QUANTITIES, limits=QUANTITIES),
)
TOLERATION = closed(
    key=STRING,
    operator=choice("Exists", "Equal"),
    value=STRING,
    effect=choice("NoSchedule", "PreferNoSchedule", "NoExecute"),
)
POD = closed(
    "spec",
    metadata=closed(labels=TEXTS),
    spec=closed(
        "containers",
        serviceAccountName=NAME,
        automountServiceAccountToken=BOOLEAN,
        restartPolicy=choice("Always", "OnFailure", "Never"),
        securityContext=POD_SECURITY,
        nodeSelector=TEXTS,
        tolerations=several(TOLERATION),
        containers=several(CONTAINER),
    ),
)

HEAD_GROUP = closed(
    "template",
    "rayStartParams",
    serviceType=choice("ClusterIP", "NodePort", "LoadBalancer"),
    rayStartParams=TEXTS,
    template=POD,
)
WORKER_GROUP = closed(
    "groupName",
    "template",
    "rayStartParams",
    groupName=NAME,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    rayStartParams=TEXTS,
    template=POD,
)
RAY_CLUSTER = closed(
    "headGroupSpec",
    rayVersion={"type": "string", "pattern": r"^\d+\.\d+\.\d+$"},
    authOptions=closed(mode=choice("token", "disabled"), secretName=NAME),
    enableInTreeAutoscaling=BOOLEAN,
    autoscalerOptions=closed(
        idleTimeoutSeconds=COUNT,
        upscalingMode=choice("Default", "Aggressive", "Conservative"),
        securityContext=CONTAINER_SECURITY,
    ),
    headGroupSpec=HEAD_GROUP,
    workerGroupSpecs=several(WORKER_GROUP),
)
RAY_JOB = closed(
    "rayClusterSpec",
    "entrypoint",
    entrypoint=STRING,
    submissionMode=choice("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
    backoffLimit=COUNT,
    shutdownAfterJobFinishes=BOOLEAN,
    ttlSecondsAfterFinished=COUNT,
    submitterPodTemplate=POD,
    rayClusterSpec=RAY_CLUSTER,
)
PEER = closed(podSelector=SELECTOR, namespaceSelector=SELECTOR)
PORT = closed(port={"type": "integer", "minimum": 1, "maximum": 65535}, protocol=choice("TCP"))
NETWORK_POLICY = closed(
    "podSelector",
    podSelector=SELECTOR,
    policyTypes=several(choice("Ingress", "Egress")),
    ingress=several(closed(**{"from": several(PEER)}, ports=several(PORT))),
)


def manifest(version: str, kind: str, spec: Schema | None = None) -> Schema:
    """A whole object of one kind."""
    fields = {"apiVersion": choice(version), "kind": choice(kind), "metadata": closed(name=NAME)}
    required = ["apiVersion", "kind", "metadata"]
    if spec:
        return closed(*required, "spec", **fields, spec=spec)
    return closed(*required, **fields)


OBJECTS = {
    "ServiceAccount": manifest("v1", "ServiceAccount"),
    "NetworkPolicy": manifest("networking.k8s.io/v1", "NetworkPolicy", NETWORK_POLICY),
    "RayJob": manifest("ray.io/v1", "RayJob", RAY_JOB),
}

"""Every file that starts a cluster: against its schema, and against what its comments promise."""

import re
import shlex
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
import yaml
from _pytest.mark.structures import ParameterSet

from cxr import cluster
from tests.support import kubernetes

ROOT = Path(__file__).parents[1]

_NAME = "RAY_idle_worker_killing_time_threshold_ms"
IDLE = f"{_NAME}={cluster.ENVIRONMENT[_NAME]}"
EXPORTED = f" RAY_USAGE_STATS_ENABLED=0\n    {IDLE};\n    "
TOKEN = {"~/.ray/auth_token": "~/.ray/auth_token"}
CODE = {
    "~/cxr/cxr": "cxr",
    "~/cxr/pyproject.toml": "pyproject.toml",
    "~/cxr/README.md": "README.md",
}
PROVIDER_FIELDS = {
    "aws": {"type", "region", "cache_stopped_nodes"},
    "local": {"type", "head_ip", "worker_ips"},
}
"""Ray's schema lets any field stand in `provider`, so a misspelt one too."""


def check_ray_schema(config: dict[str, Any]) -> None:
    """Ray's own validation, as `ray up` does it."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(config))
    assert set(config["provider"]) == PROVIDER_FIELDS[config["provider"]["type"]]


def started(commands: list[str]) -> dict[str, Any]:
    """Parameters of the one `ray start` in a list of commands, read by Ray's own parser."""
    from ray.scripts.scripts import start

    lines = [line for line in commands if "ray start" in line]
    assert len(lines) == 1
    before, _, options = lines[0].partition("ray start")
    assert "export RAY_AUTH_MODE=token " in before
    assert f" {IDLE}; " in f"{before} "
    assert "RAY_USAGE_STATS_ENABLED=0" in before
    words = shlex.split(options)
    context = start.make_context("ray start", list(words), resilient_parsing=False)
    return {**context.params, "words": words}


def check_ray_commands(config: dict[str, Any]) -> dict[str, Any]:
    """What holds on every cluster that `ray up` makes; returns how the head is started."""
    assert config["head_start_ray_commands"][0] == "ray stop"
    assert config["worker_start_ray_commands"][0] == "ray stop"
    head = started(config["head_start_ray_commands"])
    worker = started(config["worker_start_ray_commands"])
    assert head["head"]
    assert head["dashboard_host"] == "127.0.0.1"
    assert head["dashboard_port"] == 8265
    assert head["autoscaling_config"] == "~/ray_bootstrap_config.yaml"
    assert not head["block"]
    assert worker["address"] == "$RAY_HEAD_IP:" + str(head["port"])
    assert not worker["block"]
    assert worker["words"] == [f"--address={worker['address']}"]
    assert config["file_mounts"] == CODE | TOKEN
    assert all((ROOT / local).exists() for local in CODE.values())
    install = config["setup_commands"]
    assert install[0] == "chmod 600 ~/.ray/auth_token"
    assert sum("pip install --quiet -e" in line for line in install) == 1
    assert "export PATH=" in install[-1]
    return head


def check_aws(text: str) -> None:
    """cluster.yaml."""
    config = yaml.load(text, Loader=yaml.CSafeLoader)
    check_ray_schema(config)
    head_start = check_ray_commands(config)
    assert set(re.findall(r"\b[A-Z]{6,}\b", re.sub(r"#.*|README", "", text))) == {"REGION"}
    assert config["provider"]["region"] == "REGION"
    assert config["provider"]["cache_stopped_nodes"] is False
    assert config["cluster_name"] == "cxr"
    assert config["idle_timeout_minutes"] > 0

    # Nothing is open: no port, no group, and ssh goes through a session that names the instance.
    assert "0.0.0.0" not in text
    assert config["auth"]["ssh_proxy_use_node_id"] is True
    assert "ssm start-session --region REGION --target %h" in config["auth"]["ssh_proxy_command"]
    assert head_start["num_cpus"] == 0
    assert head_start["num_gpus"] == 0

    types = config["available_node_types"]
    assert set(types) == {"head", "gpu", "cpu"}
    assert config["head_node_type"] == "head"
    assert types["head"]["resources"] == {"CPU": 0, "GPU": 0}
    assert types["head"]["max_workers"] == 0
    assert types["gpu"]["resources"]["GPU"] == 1
    assert "GPU" not in types["cpu"]["resources"]
    assert sum(each["max_workers"] for each in types.values()) == config["max_workers"]
    for name, each in types.items():
        assert each["min_workers"] == 0
        node = each["node_config"]
        check_run_instances(node)
        assert node["SecurityGroupIds"] == []
        assert node["MetadataOptions"]["HttpTokens"] == "required"
        assert [disk["Ebs"]["Encrypted"] for disk in node["BlockDeviceMappings"]] == [True]
        assert [disk["Ebs"]["DeleteOnTermination"] for disk in node["BlockDeviceMappings"]] == [
            True
        ]
        assert {tag["ResourceType"] for tag in node["TagSpecifications"]} == {"instance", "volume"}
        role = "cxr-head" if name == "head" else "cxr-worker"
        assert node["IamInstanceProfile"] == {"Name": role}
        assert "ubuntu" in node["ImageId"]
        assert "24.04" in node["ImageId"]
        assert ("nvidia" in node["ImageId"]) == (name == "gpu")
        market = node.get("InstanceMarketOptions", {}).get("MarketType")
        assert market == (None if name == "head" else "spot")


def check_run_instances(node: dict[str, Any]) -> None:
    """The parameters of EC2's RunInstances, by the model that boto3 sends them with."""
    session = pytest.importorskip("botocore.session", reason="needs boto3: pip install -e '.[aws]'")
    validate = pytest.importorskip("botocore.validate")
    model = session.get_session().get_service_model("ec2").operation_model("RunInstances")
    report = validate.ParamValidator().validate(
        {**node, "MinCount": 1, "MaxCount": 1}, model.input_shape
    )
    assert not report.has_errors(), report.generate_report()
    choices = model.input_shape.members
    market = choices["InstanceMarketOptions"].members["MarketType"]
    if "InstanceMarketOptions" in node:
        assert node["InstanceMarketOptions"]["MarketType"] in market.enum


def check_onprem(text: str) -> None:
    """deploy/onprem.yaml."""
    config = yaml.load(text, Loader=yaml.CSafeLoader)
    check_ray_schema(config)
    head_start = check_ray_commands(config)
    # A blank is no part of another word, so that it can be filled in by search and replace.
    for blank in ("HEAD_ADDRESS", "WORKER_ADDRESS", "SSH_USER", "SSH_KEY"):
        assert len(re.findall(blank, text)) == len(re.findall(rf"\b{blank}\b", text)) > 0
    assert config["provider"]["worker_ips"] == ["WORKER_ADDRESS"]
    assert head_start["node_ip_address"] == config["provider"]["head_ip"] == "HEAD_ADDRESS"
    assert config["auth"] == {"ssh_user": "SSH_USER", "ssh_private_key": "SSH_KEY"}
    assert "export RAY_enable_autoscaler_v2=0;" in config["head_start_ray_commands"][1]


def check_rayjob(text: str) -> None:
    """deploy/rayjob.yaml."""
    objects = {each["kind"]: each for each in yaml.load_all(text, Loader=yaml.CSafeLoader)}
    assert set(objects) == {"ServiceAccount", "NetworkPolicy", "RayJob"}
    account, policy = objects["ServiceAccount"], objects["NetworkPolicy"]
    assert account == {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "cxr"}}
    labels = {"app": "cxr"}
    own = {"podSelector": {"matchLabels": labels}}
    operator = {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}}
    assert policy == {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "cxr"},
        "spec": {
            **own,
            "policyTypes": ["Ingress"],
            "ingress": [
                {"from": [own]},
                {
                    "from": [{"namespaceSelector": {}, "podSelector": operator}],
                    "ports": [{"port": 8265, "protocol": "TCP"}],
                },
            ],
        },
    }

    job = objects["RayJob"]["spec"]
    assert job["submissionMode"] == "K8sJobMode"
    cluster = job["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["enableInTreeAutoscaling"] is True
    assert job["shutdownAfterJobFinishes"] is True
    assert Path(ROOT, shlex.split(job["entrypoint"])[1]).is_file()
    assert all("s3://BUCKET/" in word for word in shlex.split(job["entrypoint"])[3::2])

    head, workers = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    assert head["serviceType"] == "ClusterIP"
    assert head["rayStartParams"] == {"num-cpus": "0", "num-gpus": "0"}
    assert [group["groupName"] for group in workers] == ["gpu", "cpu"]
    pods = [job["submitterPodTemplate"], head["template"], *(each["template"] for each in workers)]
    for pod in pods:
        assert pod["metadata"]["labels"] == labels
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        for toleration in pod["spec"].get("tolerations", ()):
            assert toleration["effect"] == "NoSchedule"
        (container,) = pod["spec"]["containers"]
        for quantities in container["resources"].values():
            assert set(quantities) <= {"cpu", "memory", "nvidia.com/gpu"}
        assert container["image"] == "REGISTRY/cxr:0.1.0"
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert "memory" in container["resources"]["limits"]
    for group in workers:
        assert group["minReplicas"] == 0 == group["replicas"]
        assert group["maxReplicas"] > 0
        spec = group["template"]["spec"]
        assert "SPOT" in spec["nodeSelector"].values()
        assert spec["automountServiceAccountToken"] is False
        (container,) = spec["containers"]
        gpus = container["resources"]["limits"].get("nvidia.com/gpu")
        assert gpus == ("1" if group["groupName"] == "gpu" else None)
    assert account["metadata"]["name"] == head["template"]["spec"]["serviceAccountName"]
    assert f"rayproject/ray:{cluster['rayVersion']}-" in (ROOT / "deploy/Dockerfile").read_text()


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """The instructions of a Dockerfile: name and rest, continued lines joined."""
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    for line in lines.replace("\\\n", " ").splitlines():
        if line.strip():
            name, _, rest = line.strip().partition(" ")
            yield name, rest.strip()


def check_dockerfile(text: str) -> None:
    """deploy/Dockerfile."""
    found = list(instructions(text))
    assert {name for name, _ in found} <= {"FROM", "USER", "WORKDIR", "COPY", "RUN", "ENV"}
    images = [rest for name, rest in found if name == "FROM"]
    assert len(images) == 1
    tag = re.fullmatch(r"rayproject/ray:(\d+\.\d+\.\d+)-py\d+", images[0])
    assert tag, "the base image is pinned"
    assert f"=={tag[1]}" in text, "pip keeps the image's Ray"
    assert [rest for name, rest in found if name == "USER"] == ["1000"]
    assert found[1] == ("USER", "1000"), "nothing is done as root"
    copied = set()
    for name, rest in found:
        if name == "COPY":
            *sources, _ = [word for word in rest.split() if not word.startswith("--")]
            copied |= set(sources)
        assert not re.search(r"secret|password|api_?key|auth_token", rest, re.IGNORECASE)
    assert copied == {"pyproject.toml", "README.md", "cxr", "jobs"}
    assert all((ROOT / source).exists() for source in copied)
    assert ("ENV", f"RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 {IDLE}") in found
    ignored = (ROOT / "deploy/Dockerfile.dockerignore").read_text().split("\n")
    assert {line for line in ignored if line and line[0] != "#"} == {
        "*",
        "**/__pycache__",
        *(f"!{source}" for source in copied),
    }


BUCKET_ACTIONS = {"s3:ListBucket", "s3:GetBucketLocation", "s3:ListBucketMultipartUploads"}
OBJECT_ACTIONS = {
    "s3:GetObject",
    "s3:PutObject",
    "s3:DeleteObject",
    "s3:AbortMultipartUpload",
    "s3:ListMultipartUploadParts",
}
WITHOUT_RESOURCE = {
    "ec2:DescribeInstances",
    "ec2:DescribeInstanceTypes",
    "ec2:DescribeImages",
    "ssm:UpdateInstanceInformation",
    "ssmmessages:CreateControlChannel",
    "ssmmessages:CreateDataChannel",
    "ssmmessages:OpenControlChannel",
    "ssmmessages:OpenDataChannel",
}
"""Actions that know no resource, by AWS's service authorization reference."""


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def check_iam(text: str) -> None:
    """deploy/iam.yaml."""
    template = yaml.load(text, Loader=yaml.CSafeLoader)
    assert set(template) == {"Description", "Parameters", "Resources"}
    assert set(template["Parameters"]) == {"Bucket"}
    resources = template["Resources"]
    fields = {
        "AWS::IAM::ManagedPolicy": {"Roles", "PolicyDocument"},
        "AWS::IAM::Role": {"RoleName", "AssumeRolePolicyDocument"},
        "AWS::IAM::InstanceProfile": {"InstanceProfileName", "Roles"},
    }
    for each in resources.values():
        assert set(each) == {"Type", "Properties"}
        assert set(each["Properties"]) == fields[each["Type"]]
    roles = {"HeadRole": "cxr-head", "WorkerRole": "cxr-worker"}
    for role, name in roles.items():
        assert resources[role]["Properties"]["RoleName"] == name
        trust = resources[role]["Properties"]["AssumeRolePolicyDocument"]["Statement"]
        assert [each["Principal"] for each in trust] == [{"Service": "ec2.amazonaws.com"}]
        profile = resources[role.replace("Role", "Profile")]["Properties"]
        assert profile == {"InstanceProfileName": name, "Roles": [{"Ref": role}]}

    policies = {
        name: each["Properties"]
        for name, each in resources.items()
        if each["Type"] == "AWS::IAM::ManagedPolicy"
    }
    granted = {name: each["Roles"] for name, each in policies.items()}
    assert granted == {
        "BucketPolicy": [{"Ref": "HeadRole"}, {"Ref": "WorkerRole"}],
        "HeadPolicy": [{"Ref": "HeadRole"}],
    }
    statements = [
        {"policy": name, **statement}
        for name, each in policies.items()
        for statement in each["PolicyDocument"]["Statement"]
    ]
    for each in statements:
        check_statement(each)
    by_action = {action: each for each in statements for action in listed(each["Action"])}
    assert by_action.keys() == {
        *BUCKET_ACTIONS,
        *OBJECT_ACTIONS,
        *WITHOUT_RESOURCE,
        "ec2:RunInstances",
        "ec2:CreateTags",
        "ec2:TerminateInstances",
        "ssm:GetParameters",
        "iam:PassRole",
    }
    assert by_action["iam:PassRole"]["Resource"] == {"Fn::GetAtt": ["WorkerRole", "Arn"]}
    tag = {"StringEquals": {"aws:ResourceTag/ray-cluster-name": "cxr"}}
    assert by_action["ec2:TerminateInstances"]["Condition"] == tag


def check_statement(statement: dict[str, Any]) -> None:
    """One statement of a policy: no wildcard action, and the narrowest resource there is."""
    assert set(statement) <= {"policy", "Sid", "Effect", "Action", "Resource", "Condition"}
    assert statement["Effect"] == "Allow"
    actions = set(listed(statement["Action"]))
    assert not any("*" in action for action in actions)
    if statement["policy"] == "BucketPolicy":
        name = statement["Resource"]["Fn::Sub"]
        bucket = "arn:${AWS::Partition}:s3:::${Bucket}"
        assert (actions, name) in [(BUCKET_ACTIONS, bucket), (OBJECT_ACTIONS, bucket + "/*")]
    elif statement["Resource"] == "*":
        assert actions <= WITHOUT_RESOURCE
    else:
        assert not actions & WITHOUT_RESOURCE
        for resource in listed(statement["Resource"]):
            name = resource.get("Fn::Sub", "")
            assert "${AWS::Region}" in name or actions == {"iam:PassRole"}


CHECKS: dict[str, Callable[[str], None]] = {
    "cluster.yaml": check_aws,
    "deploy/onprem.yaml": check_onprem,
    "deploy/rayjob.yaml": check_rayjob,
    "deploy/Dockerfile": check_dockerfile,
    "deploy/iam.yaml": check_iam,
}


def marked(name: str, *values: str) -> ParameterSet:
    """A case of a file; files of `ray up` are checked by Ray itself."""
    marks = pytest.mark.cluster if name in ("cluster.yaml", "deploy/onprem.yaml") else ()
    return pytest.param(name, *values, marks=marks)


@pytest.mark.parametrize("name", [marked(name) for name in CHECKS])
def test_the_file_is_valid_and_keeps_its_promises(name: str) -> None:
    CHECKS[name]((ROOT / name).read_text())


def test_every_file_has_its_check() -> None:
    files = {f"deploy/{path.name}" for path in (ROOT / "deploy").iterdir()}
    assert files - {"deploy/Dockerfile.dockerignore"} | {"cluster.yaml"} == set(CHECKS)


FOUND = (AssertionError, jsonschema.ValidationError, ValueError, KeyError, click.ClickException)
"""How a check says no: ours, a schema, Ray, a field that is gone, the command line of `ray`."""

MISTAKES = {
    "cluster.yaml": [
        ("idle_timeout_minutes:", "idle_timeout_minute:"),
        ("cache_stopped_nodes:", "cache_stoped_nodes:"),
        ("cache_stopped_nodes: false", "cache_stopped_nodes: true"),
        ("ssh_proxy_use_node_id:", "ssh_proxy_use_nodeid:"),
        ("ssh_proxy_use_node_id: true", "ssh_proxy_use_node_id: false"),
        ("head_node_type: head", "head_node_type: boss"),
        ("    max_workers: 4", "    max_worker: 4"),
        ("min_workers: 0  # Nothing", "min_workers: 1  # Nothing"),
        ("max_workers: 12", "max_workers: 2"),
        ("{CPU: 0, GPU: 0}", "{CPU: 8, GPU: 0}"),
        ("{CPU: 16}", "{CPU: sixteen}"),
        ("SecurityGroupIds: []", "SecurityGroupIds: [sg-1]"),
        ("SecurityGroupIds: []", "SecurityGroups: []"),
        ("InstanceMarketOptions: &spot", "InstanceMarketOption: &spot"),
        ("MarketType: spot", "MarketType: sport"),
        ("InstanceInterruptionBehavior", "InstanceInterruptionBehaviour"),
        ("HttpTokens: required", "HttpTokens: optional"),
        ("VolumeSize:", "VolumeSise:"),
        ("Encrypted: true", "Encrypted: false"),
        ("ResourceType: volume", "ResourceType: instance"),
        ("{Name: cxr-head}", "{Name: cxr-worker}"),
        ("IamInstanceProfile: {Name: cxr-head}", "# no profile"),
        ("gpu-ubuntu-24.04", "gpu-ubuntu-22.04"),
        ("~/.ray/auth_token: ~/.ray/auth_token", "~/.ray/auth_tokens: ~/.ray/auth_token"),
        ("~/cxr/cxr: cxr", "~/cxr: ."),
        ("rsync_exclude:", "rsync_excludes:"),
        ("--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0"),
        ("--dashboard-host=127.0.0.1", "--dashboard-hots=127.0.0.1"),
        ("--num-cpus=0 ", ""),
        ("--port=6379", "--port=6380 --block"),
        (f"RAY_AUTH_MODE=token{EXPORTED}ray start --head", "ray start --head"),
        (f"RAY_AUTH_MODE=token{EXPORTED}ray start --addr", "A=b; ray start --addr"),
        ("_threshold_ms=30000;", "_threshold_ms=3000;"),
        ("    --autoscaling-config=~/ray_bootstrap_config.yaml\n", ""),
        ("$RAY_HEAD_IP:6379", "$RAY_HEAD_IP:6380"),
        ("export PATH=", "PATH="),
        ("setup_commands:", "setup_command:"),
    ],
    "deploy/onprem.yaml": [
        ("worker_ips:", "workers_ips:"),
        ("head_ip:", "head:"),
        ("ssh_user:", "ssh_usr:"),
        ("file_mounts:", "file_mount:"),
        ("  type: local", "  type: local\n  exposed: true"),
        ("--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0"),
        ("--node-ip-address=HEAD_ADDRESS", "--node-ip-adress=HEAD_ADDRESS"),
        ("export RAY_enable_autoscaler_v2=0;", "export RAY_enable_autoscaler_v2=1;"),
        ("RAY_AUTH_MODE=token", "RAY_AUTH_MODE=disabled"),
        ("  - chmod 600 ~/.ray/auth_token\n", ""),
        ("worker_start_ray_commands:", "worker_start_ray_command:"),
    ],
    "deploy/rayjob.yaml": [
        ("jobs/score.py", "jobs/scores.py"),
        ("submissionMode: K8sJobMode", "submissionMode: K8SJobMode"),
        ("authOptions: {mode: token}", "authOptions: {mode: disabled}"),
        ("serviceType: ClusterIP", "serviceType: LoadBalancer"),
        ('num-cpus: "0"', 'num-cpu: "0"'),
        ("groupName: cpu", "groupName: CPU"),
        ("effect: NoSchedule", "effect: NoSchedul"),
        ("runAsNonRoot: true", "runAsNonRoot: false"),
        ("nvidia.com/gpu:", "nvidia.com/gpus:"),
        ("policyTypes", "policyType"),
        ("podSelector: {matchLabels: {app: cxr}}\n  policy", "podSelector: {}\n  policy"),
        ("rayVersion: 2.60.0", "rayVersion: 2.59.0"),
    ],
    "deploy/Dockerfile": [
        ("ray:2.60.0-py311", "ray:latest"),
        ("ray:2.60.0-py311", "ray:2.59.0-py311"),
        ("USER 1000", "USER root"),
        ("USER 1000\n", ""),
        ("COPY --chown=ray:users cxr cxr", "COPY --chown=ray:users . ."),
        ("users jobs jobs", "users job jobs"),
        ("RAY_AUTH_MODE=token", "RAY_AUTH_TOKEN=0123"),
        ("_threshold_ms=30000", "_threshold=30000"),
        ("WORKDIR", "WORKDIRECTORY"),
    ],
    "deploy/iam.yaml": [
        ("s3:PutObject", "s3:*"),
        ("s3:PutObject", "s3:PutObjects"),
        ("s3:::${Bucket}/*", "s3:::*"),
        ('s3:::${Bucket}"', 's3:::*"'),
        ("Roles: [{Ref: HeadRole}]\n      PolicyDocument", "Roles: []\n      PolicyDocument"),
        ('Resource: {"Fn::GetAtt": [WorkerRole, Arn]}', 'Resource: "*"'),
        ("[WorkerRole, Arn]", "[HeadRole, Arn]"),
        ("[ec2:TerminateInstances, ec2:CreateTags]", "[ec2:TerminateInstances, ec2:DeleteTags]"),
        ("aws:ResourceTag/ray-cluster-name", "aws:ResourceTag/name"),
        ("InstanceProfileName: cxr-head", "InstanceProfileName: cxr"),
        ("Service: ec2.amazonaws.com", 'AWS: "*"'),
        ("Effect: Allow\n            Action: ec2:RunInstances", "Action: ec2:RunInstances"),
    ],
}


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [marked(name, *mistake) for name, mistakes in MISTAKES.items() for mistake in mistakes],
)
def test_a_planted_mistake_is_found(name: str, right: str, wrong: str) -> None:
    text = (ROOT / name).read_text()
    assert right in text
    with pytest.raises(FOUND):
        CHECKS[name](text.replace(right, wrong))


RAYJOB_MISTAKES = [
    ("apiVersion: ray.io/v1", "apiVersion: ray.io/v1alpha1"),
    ("kind: RayJob", "kind: RayJobs"),
    ("entrypoint:", "entryPoint:"),
    ("backoffLimit: 2", 'backoffLimit: "2"'),
    ("shutdownAfterJobFinishes", "shutdownAfterJobFinish"),
    ("ttlSecondsAfterFinished", "ttlSecondAfterFinished"),
    ("submitterPodTemplate", "submitterTemplate"),
    ("authOptions", "authOption"),
    ("enableInTreeAutoscaling", "enableIntreeAutoscaling"),
    ("upscalingMode: Default", "upscalingMode: default"),
    ("headGroupSpec", "headGroup"),
    ('num-cpus: "0"', "num-cpus: 0"),
    ("maxReplicas: 8", "maxReplica: 8"),
    ("groupName: gpu", "groupname: gpu"),
    ("nodeSelector", "nodeselector"),
    ("containers:", "container:"),
    ("image: *image", "images: *image"),
    ("runAsNonRoot", "runAsNonroot"),
    ("drop: [ALL]", "drops: [ALL]"),
    ("memory: 28Gi", "memory: 28 GB"),
    ("backoffLimit: 2", "backoffLimit: 3000000000"),
    ("metadata: {labels: {app: cxr}}  # The", "metadata: {label: {app: cxr}}  # The"),
    ("- name: ray-head\n", "- {name: ray-head}\n            - name: ray-head\n"),
    ("  entrypoint: >-", "  rayClusterSpecs: {}\n  entrypoint: >-"),
]
"""What KubeRay's own schema refuses."""


@pytest.fixture(scope="module")
def rayjob_schema(real_data: Path) -> kubernetes.Schema:
    """The schema of a RayJob, from KubeRay's custom resource definition."""
    path = real_data / "kubernetes" / "ray.io_rayjobs.crd.yaml"
    if not path.is_file():
        pytest.skip(f"no custom resource definition of KubeRay at {path}; set CXR_REAL_DATA")
    definition = yaml.load(path.read_text(), Loader=yaml.CSafeLoader)
    return kubernetes.object_schema(definition, "v1")


def rayjob(text: str) -> dict[str, Any]:
    """The last object of deploy/rayjob.yaml."""
    *_, job = yaml.load_all(text, Loader=yaml.CSafeLoader)
    return dict(job)


def test_the_rayjob_fits_kuberays_own_schema(rayjob_schema: kubernetes.Schema) -> None:
    kubernetes.validate(rayjob((ROOT / "deploy/rayjob.yaml").read_text()), rayjob_schema)


@pytest.mark.parametrize(("right", "wrong"), RAYJOB_MISTAKES)
def test_kuberays_own_schema_finds_a_planted_mistake(
    rayjob_schema: kubernetes.Schema, right: str, wrong: str
) -> None:
    text = (ROOT / "deploy/rayjob.yaml").read_text()
    assert right in text
    with pytest.raises(jsonschema.ValidationError):
        kubernetes.validate(rayjob(text.replace(right, wrong)), rayjob_schema)


def packed(folder: Path, target: Path) -> zipfile.ZipFile:
    """What `ray job submit --working-dir FOLDER` sends."""
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import create_package

    create_package(
        str(folder),
        target,
        include_gitignore=True,
        excludes=get_runtime_env_default_excludes(),
        include_parent_dir=False,
    )
    return zipfile.ZipFile(target)


@pytest.mark.cluster
def test_the_package_of_a_job_is_the_code_and_small(tmp_path: Path) -> None:
    folder = tmp_path / "cxr"
    for part in ("cxr", "jobs"):
        shutil.copytree(ROOT / part, folder / part)
    for name in (".rayignore", ".gitignore", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)
    private = ("chest_xray/train/NORMAL/a.jpeg", "runs/first/v2/checkpoint/model.safetensors")
    others = ("scores/scores/part-0.parquet", "cache/pixels/0.parquet", "list.csv", ".git/HEAD")
    for name in (*private, *others, "best.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x" * 100_000)
    with packed(folder, tmp_path / "package.zip") as package:
        names = {name for name in package.namelist() if not name.endswith("/")}
        assert {name.split("/")[0] for name in names} == {"cxr", "jobs", "best.json"}
        code = {
            str(path.relative_to(ROOT))
            for part in ("cxr", "jobs")
            for path in (ROOT / part).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        assert names == code | {"best.json"}
    assert (tmp_path / "package.zip").stat().st_size < 7_500_000

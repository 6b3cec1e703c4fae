"""What a bad teardown leaves in an account; planted for two clusters, one of them is nobody's business."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

ClientOf = Callable[[str], Any]
TAG = "nim-rollouts/environment"
OWNED = "kubernetes.io/cluster/"


def tags(given: dict[str, str]) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in given.items()]


def specification(kind: str, given: dict[str, str]) -> list[dict[str, Any]]:
    return [{"ResourceType": kind, "Tags": tags(given)}]


def network(of: ClientOf, cluster: str, tag: bool = True) -> dict[str, str]:
    """A VPC with two subnets, and in it what controllers leave: a group in use, a loose interface, a balancer."""
    ec2, named = of("ec2"), {TAG: cluster} if tag else {}
    vpc = ec2.create_vpc(CidrBlock="10.7.0.0/16")["Vpc"]["VpcId"]
    if named:
        ec2.create_tags(Resources=[vpc], Tags=[{"Key": TAG, "Value": cluster}])
    subnets = [
        ec2.create_subnet(VpcId=vpc, CidrBlock=f"10.7.{n}.0/24", AvailabilityZone=f"us-west-2{zone}")["Subnet"][
            "SubnetId"
        ]
        for n, zone in enumerate("ab")
    ]
    group = ec2.create_security_group(GroupName="k8s-elb-a1", Description="of a Service", VpcId=vpc)["GroupId"]
    interface = ec2.create_network_interface(SubnetId=subnets[0], Groups=[group], Description="aws-K8S-i-0abc")
    balancer = of("elbv2").create_load_balancer(
        Name=f"k8s-{cluster}", Subnets=subnets, SecurityGroups=[group],
        Tags=[{"Key": "elbv2.k8s.aws/cluster", "Value": cluster},
              {"Key": "service.k8s.aws/stack", "Value": "nim-service/llama"}],
    )["LoadBalancers"][0]  # fmt: skip
    targets = of("elbv2").create_target_group(Name=f"t-{cluster}", Protocol="HTTP", Port=80, VpcId=vpc)
    of("elbv2").create_listener(
        LoadBalancerArn=balancer["LoadBalancerArn"], Protocol="HTTP", Port=80,
        DefaultActions=[{"Type": "forward", "TargetGroupArn": targets["TargetGroups"][0]["TargetGroupArn"]}],
    )  # fmt: skip
    return {
        "vpc": vpc,
        "subnet": subnets[0],
        "other subnet": subnets[1],
        "group": group,
        "interface": interface["NetworkInterface"]["NetworkInterfaceId"],
        "balancer": balancer["LoadBalancerArn"].rpartition("loadbalancer/")[2],
        "targets": targets["TargetGroups"][0]["TargetGroupArn"].rpartition("targetgroup/")[2],
    }


def machines(of: ClientOf, cluster: str, where: dict[str, str]) -> dict[str, str]:
    """Karpenter's node with its instance profile, and a claim's volume with a snapshot."""
    ec2, iam = of("ec2"), of("iam")
    iam.create_role(RoleName=f"{cluster}-node", AssumeRolePolicyDocument="{}", Tags=tags({TAG: cluster}))
    profile = f"{cluster}_1234567890"
    iam.create_instance_profile(InstanceProfileName=profile, Path=f"/karpenter/us-west-2/{cluster}/0-1/")
    iam.add_role_to_instance_profile(InstanceProfileName=profile, RoleName=f"{cluster}-node")
    node = ec2.run_instances(
        ImageId="ami-12345678", MinCount=1, MaxCount=1, InstanceType="g5.12xlarge", SubnetId=where["subnet"],
        SecurityGroupIds=[where["group"]], IamInstanceProfile={"Name": profile},
        TagSpecifications=specification("instance", {"karpenter.sh/nodepool": "g5", f"{OWNED}{cluster}": "owned"}),
    )["Instances"][0]  # fmt: skip
    volume = ec2.create_volume(
        AvailabilityZone="us-west-2a", Size=50,
        TagSpecifications=specification("volume", {
            TAG: cluster, "ebs.csi.aws.com/cluster": "true", "kubernetes.io/created-for/pvc/name": "store",
            "kubernetes.io/created-for/pvc/namespace": "nim-service"}),
    )["VolumeId"]  # fmt: skip
    ec2.attach_volume(VolumeId=volume, InstanceId=node["InstanceId"], Device="/dev/xvdz")
    snapshot = ec2.create_snapshot(VolumeId=volume, TagSpecifications=specification("snapshot", {TAG: cluster}))
    return {
        "node": node["InstanceId"],
        "wire": node["NetworkInterfaces"][0]["NetworkInterfaceId"],
        "profile": profile,
        "volume": volume,
        "snapshot": snapshot["SnapshotId"],
    }


def services(of: ClientOf, cluster: str, tag: bool) -> dict[str, str]:
    """What is known by its name alone; with `tag` all of it carries the environment's."""
    named = {TAG: cluster} if tag else {}
    pairs = tags(named)
    of("logs").create_log_group(logGroupName=f"/aws/eks/{cluster}/cluster", tags=named)
    # An agent's, of a name that nobody here has thought of.
    of("logs").create_log_group(logGroupName=f"/aws/containerinsights/{cluster}/prometheus", tags=named)
    secrets = of("secretsmanager")
    secrets.create_secret(Name=f"{cluster}/grafana", SecretString="not one", Tags=pairs)
    secrets.delete_secret(SecretId=f"{cluster}/grafana", RecoveryWindowInDays=7)
    of("sqs").create_queue(QueueName=f"{cluster}-karpenter", tags=named)
    of("events").put_rule(Name=f"{cluster}-spot", EventPattern='{"source": ["aws.ec2"]}', Tags=pairs)
    of("events").put_targets(
        Rule=f"{cluster}-spot",
        Targets=[{"Id": "karpenter", "Arn": f"arn:aws:sqs:us-west-2:123456789012:{cluster}-karpenter"}],
    )
    files = of("efs").create_file_system(CreationToken=cluster, Tags=pairs)["FileSystemId"]
    point = of("efs").create_access_point(FileSystemId=files)["AccessPointId"]
    key = of("kms").create_key()["KeyMetadata"]["KeyId"]
    of("kms").create_alias(AliasName=f"alias/eks/{cluster}", TargetKeyId=key)
    template = of("ec2").create_launch_template(
        LaunchTemplateName=f"{cluster}-system", LaunchTemplateData={"InstanceType": "m6i.large"}
    )["LaunchTemplate"]["LaunchTemplateId"]
    bucket = of("s3")
    for name in (f"{cluster}-reports", f"{cluster}-tfstate"):
        bucket.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": "us-west-2"})
    bucket.put_bucket_tagging(Bucket=f"{cluster}-reports", Tagging={"TagSet": tags({TAG: cluster})})
    # The bootstrap's: named like the cluster, of no environment.
    bucket.put_bucket_tagging(
        Bucket=f"{cluster}-tfstate", Tagging={"TagSet": [{"Key": "nim-rollouts/bootstrap", "Value": "true"}]}
    )
    return {"files": files, "point": point, "key": key, "template": template}


def disks_and_addresses(of: ClientOf, cluster: str) -> dict[str, str]:
    """An address that the environment pays for, and a classic balancer that a Service made, found by AWS's tag."""
    ec2 = of("ec2")
    address = ec2.allocate_address(Domain="vpc", TagSpecifications=specification("elastic-ip", {TAG: cluster}))
    of("elb").create_load_balancer(
        LoadBalancerName=f"a-{cluster}", AvailabilityZones=["us-west-2a"],
        Listeners=[{"Protocol": "tcp", "LoadBalancerPort": 80, "InstancePort": 80}],
        Tags=[{"Key": f"{OWNED}{cluster}", "Value": "owned"},
              {"Key": "kubernetes.io/service-name", "Value": "nim-service/old"}],
    )  # fmt: skip
    return {"address": address["AllocationId"], "classic": f"a-{cluster}"}


def plant(of: ClientOf, cluster: str, *, tag: bool = False) -> dict[str, str]:
    """All of it for one cluster; name -> id."""
    where = network(of, cluster)
    return where | machines(of, cluster, where) | services(of, cluster, tag) | disks_and_addresses(of, cluster)


def expected(cluster: str, p: dict[str, str]) -> dict[str, tuple[str, tuple[str, ...]]]:
    """`kind id` -> (whose, what holds it, as far as it is to be said) of all that `plant` made."""
    node, profile = f"instance {p['node']}", f"IAM instance profile {p['profile']}"
    loose, used = f"network interface {p['interface']}", f"network interface {p['wire']}"
    balancer = f"load balancer {p['balancer']} of Service nim-service/llama"
    ours, controller = "us (terraform)", "a load balancer controller"
    return {
        f"VPC {p['vpc']}": (ours, (loose, node, balancer)),
        f"subnet {p['subnet']}": ("unknown", (loose, f"{used} of {node}", node, balancer)),
        f"subnet {p['other subnet']}": ("unknown", (balancer,)),
        f"security group {p['group']}": (controller, (loose, f"{used} of {node}", node, balancer)),
        loose: ("the VPC CNI", ()),
        used: ("unknown", (node,)),
        f"load balancer {p['balancer']}": (controller, ("Service nim-service/llama",)),
        f"target group {p['targets']}": ("unknown", (balancer,)),
        node: ("Karpenter", ()),
        profile: ("unknown", (node,)),
        f"IAM role {cluster}-node": (ours, (f"{profile} of {node}",)),
        f"volume {p['volume']}": ("the EBS CSI driver", (node, "claim nim-service/store")),
        f"snapshot {p['snapshot']}": (ours, ()),
        f"log group /aws/eks/{cluster}/cluster": ("unknown", ()),
        f"log group /aws/containerinsights/{cluster}/prometheus": ("unknown", ()),
        f"secret {cluster}/grafana": ("unknown", ()),
        f"SQS queue {cluster}-karpenter": ("unknown", ()),
        f"EventBridge rule {cluster}-spot": ("unknown", (f"target karpenter ({cluster}-karpenter)",)),
        f"EFS file system {p['files']}": ("unknown", ()),
        f"EFS access point {p['point']}": ("unknown", ()),
        f"KMS alias alias/eks/{cluster}": ("unknown", ()),
        f"KMS key {p['key']}": ("unknown", (f"KMS alias alias/eks/{cluster}",)),
        f"launch template {p['template']}": ("unknown", ()),
        f"S3 bucket {cluster}-reports": (ours, ()),
        f"elastic address {p['address']}": (ours, ()),
        f"classic load balancer {p['classic']}": (controller, ("Service nim-service/old",)),
    }

# Karpenter's rights in AWS, for releases of 1.6 to 1.14. It may make and end instances of this cluster's node pools and
# nothing else: every right to change is bound to the tags that it puts on all it makes. ARNs are written out, so that
# who reads the plan sees the rights in full.
locals {
  owned_key = "kubernetes.io/cluster/${var.cluster_name}"
  ec2       = "arn:${local.partition}:ec2:${var.region}"

  # Conditions by name. Karpenter tags with its node pool's name, the cluster's, and the cluster as owner.
  karpenter_conditions = {
    to_be_ours = [
      { test = "StringEquals", variable = "aws:RequestTag/${local.owned_key}", values = ["owned"] },
      { test = "StringEquals", variable = "aws:RequestTag/eks:eks-cluster-name", values = [var.cluster_name] },
      { test = "StringLike", variable = "aws:RequestTag/karpenter.sh/nodepool", values = ["*"] },
    ]
    ours = [
      { test = "StringEquals", variable = "aws:ResourceTag/${local.owned_key}", values = ["owned"] },
      { test = "StringLike", variable = "aws:ResourceTag/karpenter.sh/nodepool", values = ["*"] },
    ]
    in_region      = [{ test = "StringEquals", variable = "aws:RequestedRegion", values = [var.region] }]
    while_creating = [{ test = "StringEquals", variable = "ec2:CreateAction", values = ["RunInstances", "CreateFleet", "CreateLaunchTemplate"] }]
    names_after_launch = [
      { test = "StringEqualsIfExists", variable = "aws:RequestTag/eks:eks-cluster-name", values = [var.cluster_name] },
      { test = "ForAllValues:StringEquals", variable = "aws:TagKeys", values = ["eks:eks-cluster-name", "karpenter.sh/nodeclaim", "Name"] },
    ]
    profile_to_be_ours = [
      { test = "StringEquals", variable = "aws:RequestTag/${local.owned_key}", values = ["owned"] },
      { test = "StringEquals", variable = "aws:RequestTag/eks:eks-cluster-name", values = [var.cluster_name] },
      { test = "StringEquals", variable = "aws:RequestTag/topology.kubernetes.io/region", values = [var.region] },
      { test = "StringLike", variable = "aws:RequestTag/karpenter.k8s.aws/ec2nodeclass", values = ["*"] },
    ]
    profile_ours = [
      { test = "StringEquals", variable = "aws:ResourceTag/${local.owned_key}", values = ["owned"] },
      { test = "StringEquals", variable = "aws:ResourceTag/topology.kubernetes.io/region", values = [var.region] },
      { test = "StringLike", variable = "aws:ResourceTag/karpenter.k8s.aws/ec2nodeclass", values = ["*"] },
    ]
    to_ec2 = [{ test = "StringEquals", variable = "iam:PassedToService", values = ["ec2.amazonaws.com", "ec2.amazonaws.com.cn"] }]
  }

  launched = [for kind in ["fleet", "instance", "volume", "network-interface", "launch-template", "spot-instances-request"] : "${local.ec2}:*:${kind}/*"]
  profiles = ["arn:${local.partition}:iam::${local.account_id}:instance-profile/*"]

  # One inline policy a concern: they go with the role, and none can be left behind on its own.
  karpenter_policies = { for concern, statements in {
    launch = [
      { actions = ["ec2:RunInstances", "ec2:CreateFleet"], resources = concat([for kind in ["image", "snapshot"] : "${local.ec2}::${kind}/*"], [for kind in ["security-group", "subnet", "capacity-reservation", "placement-group"] : "${local.ec2}:*:${kind}/*"]), conditions = [] },
      { actions = ["ec2:RunInstances", "ec2:CreateFleet"], resources = ["${local.ec2}:*:launch-template/*"], conditions = ["ours"] },
      { actions = ["ec2:RunInstances", "ec2:CreateFleet", "ec2:CreateLaunchTemplate"], resources = local.launched, conditions = ["to_be_ours"] },
      { actions = ["ec2:CreateTags"], resources = local.launched, conditions = ["to_be_ours", "while_creating"] },
      { actions = ["ec2:CreateTags"], resources = ["${local.ec2}:*:instance/*"], conditions = ["ours", "names_after_launch"] },
      { actions = ["iam:PassRole"], resources = ["arn:${local.partition}:iam::${local.account_id}:role/${var.cluster_name}-node"], conditions = ["to_ec2"] },
    ]
    remove = [
      { actions = ["ec2:TerminateInstances", "ec2:DeleteLaunchTemplate"], resources = ["${local.ec2}:*:instance/*", "${local.ec2}:*:launch-template/*"], conditions = ["ours"] },
    ]
    instance-profiles = [
      { actions = ["iam:CreateInstanceProfile"], resources = local.profiles, conditions = ["profile_to_be_ours"] },
      { actions = ["iam:TagInstanceProfile"], resources = local.profiles, conditions = ["profile_ours", "profile_to_be_ours"] },
      { actions = ["iam:AddRoleToInstanceProfile", "iam:RemoveRoleFromInstanceProfile", "iam:DeleteInstanceProfile"], resources = local.profiles, conditions = ["profile_ours"] },
      { actions = ["iam:GetInstanceProfile"], resources = local.profiles, conditions = [] },
      # A list knows no resource to be bound to.
      { actions = ["iam:ListInstanceProfiles"], resources = ["*"], conditions = [] },
    ]
    discover = [
      { actions = [for what in ["AvailabilityZones", "CapacityReservations", "Images", "InstanceStatus", "InstanceTypeOfferings", "InstanceTypes", "Instances", "LaunchTemplates", "PlacementGroups", "SecurityGroups", "SpotPriceHistory", "Subnets"] : "ec2:Describe${what}"], resources = ["*"], conditions = ["in_region"] },
      { actions = ["ssm:GetParameter"], resources = ["arn:${local.partition}:ssm:${var.region}::parameter/aws/service/*"], conditions = [] },
      { actions = ["pricing:GetProducts"], resources = ["*"], conditions = [] },
      { actions = ["eks:DescribeCluster"], resources = [local.cluster_arn], conditions = [] },
    ]
    interruption = [
      { actions = ["sqs:DeleteMessage", "sqs:GetQueueUrl", "sqs:ReceiveMessage"], resources = [local.queue_arn], conditions = [] },
    ]
  } : concern => statements if var.karpenter.enabled && (concern != "interruption" || var.karpenter.interruption_queue) }
}

data "aws_iam_policy_document" "karpenter" {
  for_each = local.karpenter_policies

  dynamic "statement" {
    for_each = each.value

    content {
      actions   = statement.value.actions
      resources = statement.value.resources

      dynamic "condition" {
        for_each = flatten([for name in statement.value.conditions : local.karpenter_conditions[name]])

        content {
          test     = condition.value.test
          variable = condition.value.variable
          values   = condition.value.values
        }
      }
    }
  }
}

resource "aws_iam_role_policy" "karpenter" {
  for_each = local.karpenter_policies

  name   = each.key
  role   = aws_iam_role.this["karpenter"].name
  policy = data.aws_iam_policy_document.karpenter[each.key].json
}

resource "aws_eks_pod_identity_association" "karpenter" {
  count = var.karpenter.enabled ? 1 : 0

  cluster_name    = aws_eks_cluster.this.name
  namespace       = var.karpenter.namespace
  service_account = var.karpenter.service_account
  role_arn        = aws_iam_role.this["karpenter"].arn
}

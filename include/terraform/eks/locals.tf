# Asked only where no zones are named, so that a fixed list plans without a call.
data "aws_availability_zones" "open" {
  count = length(var.availability_zones) == 0 ? 1 : 0

  state = "available"

  # EKS puts no control plane into these.
  exclude_zone_ids = ["use1-az3", "usw1-az2", "cac1-az3"]

  filter {
    name   = "opt-in-status"
    values = ["opt-in-not-required"]
  }
}

data "aws_partition" "current" {}

data "aws_caller_identity" "current" {}

locals {
  tags          = merge(var.tags, { "nim-rollouts/environment" = var.environment })
  discovery_tag = { "karpenter.sh/discovery" = var.cluster_name }

  partition         = data.aws_partition.current.partition
  account_id        = data.aws_caller_identity.current.account_id
  policy_prefix     = "arn:${local.partition}:iam::aws:policy"
  eks_access_prefix = "arn:${local.partition}:eks::aws:cluster-access-policy"
  # Written out, so that policies can be planned before the cluster exists.
  cluster_arn = "arn:${local.partition}:eks:${var.region}:${local.account_id}:cluster/${var.cluster_name}"
}

# Asked only where no zones are named, so that a fixed list plans without a call.
data "aws_availability_zones" "open" {
  count = length(var.availability_zones) == 0 ? 1 : 0

  state = "available"

  filter {
    name   = "opt-in-status"
    values = ["opt-in-not-required"]
  }
}

data "aws_partition" "current" {}

locals {
  tags = merge(var.tags, { "nim-rollouts/environment" = var.environment })

  zones = length(var.availability_zones) > 0 ? var.availability_zones : slice(sort(data.aws_availability_zones.open[0].names), 0, var.zone_count)

  # The block is cut into 16 parts: the lower 8 for private subnets (pods take addresses from them), of which at most
  # 4 are used, and one part, cut again into 16, for the public ones, which hold NAT gateways and load balancers only.
  private_cidrs = { for index, zone in local.zones : zone => cidrsubnet(var.vpc_cidr, 4, index) }
  public_cidrs  = { for index, zone in local.zones : zone => cidrsubnet(cidrsubnet(var.vpc_cidr, 4, 15), 4, index) }

  nat_zones = {
    single   = slice(local.zones, 0, 1)
    per-zone = local.zones
    none     = []
  }[var.nat_gateways]

  discovery_tag = { "karpenter.sh/discovery" = var.cluster_name }

  policy_prefix     = "arn:${data.aws_partition.current.partition}:iam::aws:policy"
  eks_access_prefix = "arn:${data.aws_partition.current.partition}:eks::aws:cluster-access-policy"
}

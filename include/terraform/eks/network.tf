locals {
  open_zones = length(var.availability_zones) > 0 ? [] : sort(data.aws_availability_zones.open[0].names)
  zones      = length(var.availability_zones) > 0 ? var.availability_zones : slice(local.open_zones, 0, min(var.zone_count, length(local.open_zones)))

  # The VPC's own block is cut into 16 parts: the lower 8 for private subnets, of which at most 4 are used, and one part,
  # cut again into 16, for the public ones, which hold NAT gateways and load balancers only.
  private_cidrs = { for index, zone in local.zones : zone => cidrsubnet(var.vpc_cidr, 4, index) }
  public_cidrs  = { for index, zone in local.zones : zone => cidrsubnet(cidrsubnet(var.vpc_cidr, 4, 15), 4, index) }

  # Nodes and their pods take addresses from the secondary block, a quarter of it a zone. Without one they share the
  # private subnets with the control plane's interfaces, internal load balancers and mount targets.
  node_cidrs   = var.secondary_cidr == null ? {} : { for index, zone in local.zones : zone => cidrsubnet(var.secondary_cidr, 2, index) }
  node_subnets = var.secondary_cidr == null ? aws_subnet.private : aws_subnet.node
}

resource "aws_vpc" "this" {
  cidr_block           = var.vpc_cidr
  enable_dns_support   = true
  enable_dns_hostnames = true # EFS mount targets are found by name

  tags = { Name = var.cluster_name }
}

resource "aws_vpc_ipv4_cidr_block_association" "secondary" {
  count = var.secondary_cidr == null ? 0 : 1

  vpc_id     = aws_vpc.this.id
  cidr_block = var.secondary_cidr
}

resource "aws_subnet" "public" {
  for_each = local.public_cidrs

  vpc_id            = aws_vpc.this.id
  availability_zone = each.key
  cidr_block        = each.value

  tags = {
    Name                     = "${var.cluster_name}-public-${each.key}"
    "kubernetes.io/role/elb" = "1"
  }
}

resource "aws_subnet" "private" {
  for_each = local.private_cidrs

  vpc_id            = aws_vpc.this.id
  availability_zone = each.key
  cidr_block        = each.value

  tags = merge(var.secondary_cidr == null ? local.discovery_tag : {}, {
    Name                              = "${var.cluster_name}-private-${each.key}"
    "kubernetes.io/role/internal-elb" = "1"
  })
}

resource "aws_subnet" "node" {
  for_each = local.node_cidrs

  # Through the association, so that the block is there first and goes last.
  vpc_id            = aws_vpc_ipv4_cidr_block_association.secondary[0].vpc_id
  availability_zone = each.key
  cidr_block        = each.value

  tags = merge(local.discovery_tag, { Name = "${var.cluster_name}-node-${each.key}" })
}

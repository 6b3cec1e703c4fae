# EKS would make this group itself, without retention, and leave it behind on destroy.
resource "aws_cloudwatch_log_group" "control_plane" {
  name              = "/aws/eks/${var.cluster_name}/cluster"
  retention_in_days = var.log_retention_days
}

resource "aws_eks_cluster" "this" {
  name     = var.cluster_name
  role_arn = aws_iam_role.this["cluster"].arn
  version  = var.cluster_version

  # Network, DNS and proxy come as managed add-ons (addons.tf), never as EKS's unmanaged first copies.
  bootstrap_self_managed_addons = false
  enabled_cluster_log_types     = var.control_plane_logs

  access_config {
    authentication_mode = "API"
    # Administrators are named, not whoever happened to run the first apply.
    bootstrap_cluster_creator_admin_permissions = false
  }

  vpc_config {
    subnet_ids              = [for zone in local.zones : aws_subnet.private[zone].id]
    endpoint_private_access = true
    endpoint_public_access  = length(var.public_access_cidrs) > 0
    public_access_cidrs     = length(var.public_access_cidrs) > 0 ? var.public_access_cidrs : null
  }

  upgrade_policy {
    support_type = "STANDARD"
  }

  lifecycle {
    # They count at its creation alone, and EKS does not tell them afterwards: a cluster that is imported, as after an
    # apply that was cut off, would be replaced for them.
    ignore_changes = [bootstrap_self_managed_addons, access_config[0].bootstrap_cluster_creator_admin_permissions]
  }

  # Without its policies the control plane can neither come up nor, on destroy, remove its own interfaces and groups.
  # A block that the VPC gets later is known to the control plane only after up to an hour.
  depends_on = [
    aws_iam_role_policy_attachment.this,
    aws_cloudwatch_log_group.control_plane,
    aws_vpc_ipv4_cidr_block_association.secondary,
  ]
}

# Nodes use the security group that EKS makes for the cluster; node provisioners find it by this tag.
resource "aws_ec2_tag" "cluster_security_group" {
  resource_id = aws_eks_cluster.this.vpc_config[0].cluster_security_group_id
  key         = "karpenter.sh/discovery"
  value       = var.cluster_name
}

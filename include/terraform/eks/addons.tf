locals {
  addons_before_nodes = { for name, settings in var.addons : name => settings if settings.before_nodes }
  addons_after_nodes  = { for name, settings in var.addons : name => settings if !settings.before_nodes }

  # Service accounts of add-ons that call AWS, with the role of local.roles that they take on by pod identity.
  addon_identities = {
    aws-efs-csi-driver = { service_account = "efs-csi-controller-sa", role = "efs-csi" }
  }
}

resource "aws_eks_addon" "before_nodes" {
  for_each = local.addons_before_nodes

  cluster_name         = aws_eks_cluster.this.name
  addon_name           = each.key
  addon_version        = each.value.version
  configuration_values = each.value.configuration_values

  resolve_conflicts_on_create = "OVERWRITE"
  resolve_conflicts_on_update = "PRESERVE"

  dynamic "pod_identity_association" {
    for_each = contains(keys(local.addon_identities), each.key) ? [local.addon_identities[each.key]] : []

    content {
      service_account = pod_identity_association.value.service_account
      role_arn        = aws_iam_role.this[pod_identity_association.value.role].arn
    }
  }
}

# These have pods that a node must carry before EKS calls the add-on active.
resource "aws_eks_addon" "after_nodes" {
  for_each = local.addons_after_nodes

  cluster_name         = aws_eks_cluster.this.name
  addon_name           = each.key
  addon_version        = each.value.version
  configuration_values = each.value.configuration_values

  resolve_conflicts_on_create = "OVERWRITE"
  resolve_conflicts_on_update = "PRESERVE"

  dynamic "pod_identity_association" {
    for_each = contains(keys(local.addon_identities), each.key) ? [local.addon_identities[each.key]] : []

    content {
      service_account = pod_identity_association.value.service_account
      role_arn        = aws_iam_role.this[pod_identity_association.value.role].arn
    }
  }

  depends_on = [aws_eks_node_group.system]
}

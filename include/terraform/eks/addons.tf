locals {
  addons = merge(
    var.cloudwatch_observability ? { amazon-cloudwatch-observability = { version = null, configuration_values = null, before_nodes = false } } : {},
    var.addons,
  )
  addons_before_nodes = { for name, settings in local.addons : name => settings if settings.before_nodes }
  addons_after_nodes  = { for name, settings in local.addons : name => settings if !settings.before_nodes }

  # Add-ons that call AWS: the service account that takes on a role by pod identity, the role, and its policy.
  addon_identities = { for name, identity in {
    aws-ebs-csi-driver              = { service_account = "ebs-csi-controller-sa", role = "ebs-csi", policy = "service-role/AmazonEBSCSIDriverPolicy" }
    aws-efs-csi-driver              = { service_account = "efs-csi-controller-sa", role = "efs-csi", policy = "service-role/AmazonEFSCSIDriverPolicy" }
    amazon-cloudwatch-observability = { service_account = "cloudwatch-agent", role = "cloudwatch", policy = "CloudWatchAgentServerPolicy" }
  } : name => identity if contains(keys(local.addons), name) }

  # Volumes of claims get our tags, whatever else `addons` has the driver configured with. Access points cannot: the EFS
  # driver's policy of AWS allows no tag but its own.
  ebs_given      = try(jsondecode(local.addons["aws-ebs-csi-driver"].configuration_values), {})
  ebs_controller = try(local.ebs_given.controller, {})
  ebs_tags       = merge(try(local.ebs_controller.extraVolumeTags, {}), local.tags)

  addon_configuration = merge(
    { for name, settings in local.addons : name => settings.configuration_values },
    { aws-ebs-csi-driver = jsonencode(merge(local.ebs_given, { controller = merge(local.ebs_controller, { extraVolumeTags = local.ebs_tags }) })) },
  )
}

# EKS's default for the cluster's version, asked for in each plan: an add-on without a version of yours follows the
# cluster's. It is known by var.cluster_version already while the cluster is still on the version before.
data "aws_eks_addon_version" "default" {
  for_each = toset([for name, settings in local.addons : name if settings.version == null])

  addon_name         = each.key
  kubernetes_version = var.cluster_version
}

locals {
  addon_versions = { for name, settings in local.addons : name => settings.version != null ? settings.version : data.aws_eks_addon_version.default[name].version }
}

resource "aws_eks_addon" "before_nodes" {
  for_each = local.addons_before_nodes

  cluster_name         = aws_eks_cluster.this.name
  addon_name           = each.key
  addon_version        = local.addon_versions[each.key]
  configuration_values = local.addon_configuration[each.key]

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
  addon_version        = local.addon_versions[each.key]
  configuration_values = local.addon_configuration[each.key]

  resolve_conflicts_on_create = "OVERWRITE"
  resolve_conflicts_on_update = "PRESERVE"

  dynamic "pod_identity_association" {
    for_each = contains(keys(local.addon_identities), each.key) ? [local.addon_identities[each.key]] : []

    content {
      service_account = pod_identity_association.value.service_account
      role_arn        = aws_iam_role.this[pod_identity_association.value.role].arn
    }
  }

  # The role must be good for something, and the agent must find its log groups, when the first pod starts.
  depends_on = [
    aws_eks_node_group.system,
    aws_iam_role_policy_attachment.this,
    aws_cloudwatch_log_group.observability,
  ]
}

data "aws_iam_policy_document" "assumed_by" {
  for_each = {
    cluster      = { service = "eks.amazonaws.com", actions = ["sts:AssumeRole"] }
    node         = { service = "ec2.amazonaws.com", actions = ["sts:AssumeRole"] }
    pod-identity = { service = "pods.eks.amazonaws.com", actions = ["sts:AssumeRole", "sts:TagSession"] }
  }

  statement {
    actions = each.value.actions

    principals {
      type        = "Service"
      identifiers = [each.value.service]
    }

    # Pods of this cluster alone, not of any cluster of the account.
    dynamic "condition" {
      for_each = each.key == "pod-identity" ? [local.cluster_arn] : []

      content {
        test     = "StringEquals"
        variable = "aws:RequestTag/eks-cluster-arn"
        values   = [condition.value]
      }
    }
  }
}

locals {
  node_policies = [
    "AmazonEKSWorkerNodePolicy",
    "AmazonEC2ContainerRegistryPullOnly",
    "AmazonEKS_CNI_Policy",
    "AmazonSSMManagedInstanceCore",
  ]

  # EKS makes the access entry of a managed node group's role by itself, and refuses a second one. GPU nodes come
  # from Karpenter, so they have a role of their own, whose entry is ours (access.tf).
  roles = merge(
    {
      cluster = { trust = "cluster", policies = ["AmazonEKSClusterPolicy"] }
      node    = { trust = "node", policies = local.node_policies }
    },
    var.system_nodes.size > 0 ? { system-node = { trust = "node", policies = local.node_policies } } : {},
    { for addon, identity in local.addon_identities : identity.role => { trust = "pod-identity", policies = [identity.policy] } },
    var.karpenter.enabled ? { karpenter = { trust = "pod-identity", policies = [] } } : {},
  )

  attachments = merge([
    for role, settings in local.roles : {
      for policy in settings.policies : "${role}/${basename(policy)}" => { role = role, policy = policy }
    }
  ]...)
}

resource "aws_iam_role" "this" {
  for_each = local.roles

  name               = "${var.cluster_name}-${each.key}"
  assume_role_policy = data.aws_iam_policy_document.assumed_by[each.value.trust].json
}

resource "aws_iam_role_policy_attachment" "this" {
  for_each = local.attachments

  role       = aws_iam_role.this[each.value.role].name
  policy_arn = "${local.policy_prefix}/${each.value.policy}"
}

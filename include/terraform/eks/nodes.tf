# Without a template of ours, the group's instances, volumes and interfaces would carry none of our tags: an inventory by
# tag could not find what a broken teardown left.
resource "aws_launch_template" "system" {
  count = var.system_nodes.size > 0 ? 1 : 0

  name                   = "${var.cluster_name}-system"
  update_default_version = true

  # Bottlerocket keeps itself on xvda; images and pods live on xvdb.
  block_device_mappings {
    device_name = "/dev/xvdb"

    ebs {
      volume_size           = var.system_nodes.disk_gb
      volume_type           = "gp3"
      encrypted             = true
      delete_on_termination = true
    }
  }

  # Pods outside the host's network do not reach the node's own credentials.
  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }

  dynamic "tag_specifications" {
    for_each = ["instance", "volume", "network-interface"]

    content {
      resource_type = tag_specifications.value
      tags          = merge(local.tags, { Name = "${var.cluster_name}-system" })
    }
  }
}

resource "aws_eks_node_group" "system" {
  count = var.system_nodes.size > 0 ? 1 : 0

  cluster_name    = aws_eks_cluster.this.name
  node_group_name = "system"
  node_role_arn   = aws_iam_role.this["system-node"].arn
  version         = aws_eks_cluster.this.version
  subnet_ids      = [for zone in local.zones : local.node_subnets[zone].id]
  ami_type        = "BOTTLEROCKET_x86_64"
  instance_types  = var.system_nodes.instance_types

  labels = { "karpenter.sh/controller" = "true" }

  launch_template {
    id      = aws_launch_template.system[0].id
    version = aws_launch_template.system[0].latest_version
  }

  scaling_config {
    min_size     = min(1, var.system_nodes.size)
    desired_size = var.system_nodes.size
    max_size     = var.system_nodes.max_size
  }

  update_config {
    max_unavailable = 1
  }

  node_repair_config {
    enabled = true
  }

  lifecycle {
    # Whoever scales the group afterwards (a person, an autoscaler) is not to be undone by the next apply.
    ignore_changes = [scaling_config[0].desired_size]
  }

  # Nodes that join before the network plug-in stay NotReady; nodes without a route never join.
  depends_on = [
    aws_eks_addon.before_nodes,
    aws_route_table_association.private,
    aws_route_table_association.node,
    aws_iam_role_policy_attachment.this,
  ]
}

# The file system that holds the model caches. Access points are made and removed by the EFS CSI driver, one a claim.
resource "aws_efs_file_system" "models" {
  creation_token  = var.cluster_name
  encrypted       = true
  throughput_mode = var.efs_throughput_mode

  tags = { Name = "${var.cluster_name}-models" }
}

resource "aws_security_group" "efs" {
  name_prefix = "${var.cluster_name}-efs-"
  description = "NFS from the nodes of ${var.cluster_name} to its file system"
  vpc_id      = aws_vpc.this.id

  tags = { Name = "${var.cluster_name}-efs" }

  # Mount targets hold the group: a replacement must stand before the old one can go.
  lifecycle {
    create_before_destroy = true
  }
}

resource "aws_vpc_security_group_ingress_rule" "efs_from_nodes" {
  security_group_id            = aws_security_group.efs.id
  description                  = "NFS from the cluster's security group"
  referenced_security_group_id = aws_eks_cluster.this.vpc_config[0].cluster_security_group_id
  ip_protocol                  = "tcp"
  from_port                    = 2049
  to_port                      = 2049
}

# A node can mount the file system only if its own zone has a target.
resource "aws_efs_mount_target" "models" {
  for_each = aws_subnet.private

  file_system_id  = aws_efs_file_system.models.id
  subnet_id       = each.value.id
  security_groups = [aws_security_group.efs.id]
}

# Who reaches a mount target may read and write, over TLS alone. The storage class mounts with tls and iam.
data "aws_iam_policy_document" "efs" {
  count = var.efs_require_tls ? 1 : 0

  statement {
    sid       = "MountFromTheVPC"
    actions   = ["elasticfilesystem:ClientMount", "elasticfilesystem:ClientWrite"]
    resources = [aws_efs_file_system.models.arn]

    principals {
      type        = "AWS"
      identifiers = ["*"]
    }

    condition {
      test     = "Bool"
      variable = "elasticfilesystem:AccessedViaMountTarget"
      values   = ["true"]
    }
  }

  statement {
    sid       = "NothingWithoutTLS"
    effect    = "Deny"
    actions   = ["*"]
    resources = [aws_efs_file_system.models.arn]

    principals {
      type        = "AWS"
      identifiers = ["*"]
    }

    condition {
      test     = "Bool"
      variable = "aws:SecureTransport"
      values   = ["false"]
    }
  }
}

resource "aws_efs_file_system_policy" "models" {
  count = var.efs_require_tls ? 1 : 0

  file_system_id = aws_efs_file_system.models.id
  policy         = data.aws_iam_policy_document.efs[0].json
}

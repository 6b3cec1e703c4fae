# A small root with what a teardown needs to find: a network, a file system, and a cluster with nodes of its own.
# The cluster is made by a script, since the provider's own patience with EKS alone takes most of a minute.

terraform {
  required_version = ">= 1.11"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.95, < 7"
    }
  }

  backend "s3" {
    use_lockfile = true
  }
}

variable "environment" {
  type = string
}

variable "region" {
  type = string
}

variable "cluster_name" {
  type = string
}

variable "admin_principal_arns" {
  type = list(string)
}

variable "python" {
  type        = string
  description = "A Python with boto3, for the script."
}

variable "only_network" {
  type        = bool
  default     = false
  description = "An apply that never came to the cluster."
}

locals {
  discovery = { "karpenter.sh/discovery" = var.cluster_name }
  tags      = { "nim-rollouts/environment" = var.environment }
  whole     = var.only_network ? 0 : 1
}

provider "aws" {
  region = var.region

  default_tags {
    tags = local.tags
  }
}

resource "aws_vpc" "this" {
  cidr_block = "10.7.0.0/16"
  tags       = { Name = var.cluster_name }
}

resource "aws_subnet" "this" {
  count = 2

  vpc_id            = aws_vpc.this.id
  cidr_block        = cidrsubnet(aws_vpc.this.cidr_block, 4, count.index)
  availability_zone = "${var.region}${["a", "b"][count.index]}"
  tags              = local.discovery
}

resource "aws_security_group" "nodes" {
  name   = "${var.cluster_name}-nodes"
  vpc_id = aws_vpc.this.id
  tags   = local.discovery
}

resource "aws_iam_role" "node" {
  name = "${var.cluster_name}-node"
  assume_role_policy = jsonencode({
    Version   = "2012-10-17"
    Statement = [{ Effect = "Allow", Action = "sts:AssumeRole", Principal = { Service = ["ec2.amazonaws.com", "eks.amazonaws.com"] } }]
  })
}

resource "terraform_data" "cluster" {
  count = local.whole

  input = {
    script  = "${var.python} ${path.module}/cluster.py"
    name    = var.cluster_name
    subnets = join(",", aws_subnet.this[*].id)
    role    = aws_iam_role.node.arn
    admin   = var.admin_principal_arns[0]
    owner   = var.environment
  }

  provisioner "local-exec" {
    command = "${self.input.script} create ${self.input.name} ${self.input.subnets} ${self.input.role} ${self.input.admin} ${self.input.owner}"
  }

  provisioner "local-exec" {
    when    = destroy
    command = "${self.input.script} delete ${self.input.name}"
  }
}

resource "aws_efs_file_system" "this" {
  count = local.whole

  creation_token = var.cluster_name
}

resource "aws_efs_mount_target" "this" {
  count = local.whole

  file_system_id = aws_efs_file_system.this[0].id
  subnet_id      = aws_subnet.this[0].id
}

output "cluster_name" {
  value = var.cluster_name
}

output "efs_file_system_id" {
  value = one(aws_efs_file_system.this[*].id)
}

output "node_role_name" {
  value = aws_iam_role.node.name
}

output "discovery_tag" {
  value = local.discovery
}

output "vpc_id" {
  value = aws_vpc.this.id
}

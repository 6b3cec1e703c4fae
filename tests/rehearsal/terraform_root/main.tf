# A small root for tests of the terraform client: quick resources, one that is replaced, a sensitive value.

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

variable "name" {
  type = string
}

variable "cidr" {
  type    = string
  default = "10.1.0.0/16"
}

variable "groups" {
  type    = number
  default = 2
}

variable "queues" {
  type        = number
  default     = 0
  description = "Each takes its creator half a minute: time to be killed in."
}

variable "password" {
  type      = string
  sensitive = true
}

provider "aws" {
  default_tags {
    tags = { "nim-rollouts/environment" = var.name }
  }
}

resource "aws_vpc" "this" {
  cidr_block = var.cidr
  tags       = { Name = var.name }
}

resource "aws_security_group" "these" {
  count = var.groups

  name   = "${var.name}-${count.index}"
  vpc_id = aws_vpc.this.id
}

resource "aws_sqs_queue" "slow" {
  count = var.queues

  name = "${var.name}-${count.index}"
}

resource "aws_ssm_parameter" "hidden" {
  name  = "/${var.name}/hidden"
  type  = "SecureString"
  value = var.password
}

output "vpc_id" {
  value = aws_vpc.this.id
}

output "password" {
  value     = var.password
  sensitive = true
}

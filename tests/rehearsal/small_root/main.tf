# A root of one thing that costs nothing: what the approval's tests plan, replace and destroy within seconds.
terraform {
  required_version = ">= 1.11"

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
  type    = list(string)
  default = []
}

variable "revision" {
  type = string
}

resource "terraform_data" "thing" {
  input            = var.environment
  triggers_replace = [var.revision]
}

output "revision" {
  value = terraform_data.thing.id
}

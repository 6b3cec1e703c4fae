terraform {
  # 1.11 made S3's own lock file (use_lockfile) generally available.
  required_version = ">= 1.11"

  required_providers {
    aws = {
      source = "hashicorp/aws"
      # 5.95 and 6.x both run this module: nothing that 6.0 removed is used, nothing that it added is needed.
      version = ">= 5.95, < 7"
    }
  }

  # Bucket, key and region come from the environment's file by `-backend-config`. Without `encrypt`: S3 encrypts each
  # object with its bucket's key, yours where it has one; `encrypt` would ask for S3's own instead.
  backend "s3" {
    use_lockfile = true
  }
}

# Credentials, endpoints and assumed roles come from the standard AWS_* variables or the profile, never from here.
provider "aws" {
  region = var.region

  default_tags {
    tags = local.tags
  }
}

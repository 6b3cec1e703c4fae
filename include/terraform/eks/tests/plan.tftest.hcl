# Plans with the real provider, which needs no account for that: what it would ask AWS is answered here. (A mock_provider
# will not do: terraform 1.11 refuses it beside an ephemeral resource.) What AWS makes of a plan is not tested here.
provider "aws" {
  region                      = "us-west-2"
  access_key                  = "none"
  secret_key                  = "none"
  skip_credentials_validation = true
  skip_requesting_account_id  = true
  skip_metadata_api_check     = true
}

override_data {
  target = data.aws_availability_zones.open
  values = { names = ["us-west-2d", "us-west-2a", "us-west-2c", "us-west-2b"] }
}

override_data {
  target = data.aws_caller_identity.current
  values = { account_id = "123456789012" }
}

override_data {
  target = data.aws_eks_addon_version.default
  values = { version = "v1.2.3-eksbuild.4" }
}

variables {
  environment          = "unit"
  cluster_name         = "unit"
  admin_principal_arns = ["arn:aws:iam::123456789012:role/airflow"]
  # Its password is asked for while planning. The whole life of an environment (tests/rehearsal) is where it is tested.
  grafana = { enabled = false }
}

run "defaults" {
  command = plan

  assert {
    condition     = output.availability_zones == tolist(["us-west-2a", "us-west-2b", "us-west-2c"])
    error_message = "three zones of the region, in order"
  }
  assert {
    condition     = [for subnet in aws_subnet.node : subnet.cidr_block] == ["100.64.0.0/18", "100.64.64.0/18", "100.64.128.0/18"]
    error_message = "nodes take their addresses from the secondary block"
  }
  assert {
    condition     = alltrue([for subnet in aws_subnet.node : subnet.tags["karpenter.sh/discovery"] == "unit"]) && !anytrue([for subnet in aws_subnet.private : contains(keys(subnet.tags), "karpenter.sh/discovery")])
    error_message = "Karpenter finds the node subnets, and no others"
  }
  assert {
    condition     = keys(aws_nat_gateway.this) == ["us-west-2a"] && length(aws_route_table.private) == 3
    error_message = "one NAT gateway serves all zones"
  }
  assert {
    condition     = keys(aws_efs_mount_target.models) == keys(aws_subnet.private)
    error_message = "a mount target in every zone"
  }
  assert {
    condition     = keys(aws_eks_addon.before_nodes) == ["eks-pod-identity-agent", "kube-proxy", "vpc-cni"] && keys(aws_eks_addon.after_nodes) == ["aws-ebs-csi-driver", "aws-efs-csi-driver", "coredns"]
    error_message = "network and identities before the nodes, pods of their own after"
  }
  assert {
    condition     = aws_eks_node_group.system[0].version == "1.35" && alltrue([for one in data.aws_eks_addon_version.default : one.kubernetes_version == "1.35"])
    error_message = "nodes and add-ons are of the cluster's version"
  }
  assert {
    condition     = alltrue([for one in merge(aws_eks_addon.before_nodes, aws_eks_addon.after_nodes) : one.addon_version == "v1.2.3-eksbuild.4"])
    error_message = "EKS's default, where no version is given"
  }
  assert {
    condition     = jsondecode(aws_eks_addon.after_nodes["aws-ebs-csi-driver"].configuration_values).controller.extraVolumeTags["nim-rollouts/environment"] == "unit"
    error_message = "volumes of claims carry the environment's tag"
  }
  assert {
    condition     = length(aws_eks_addon.after_nodes["aws-efs-csi-driver"].pod_identity_association) == 1 && length(aws_eks_addon.after_nodes["coredns"].pod_identity_association) == 0
    error_message = "add-ons that call AWS have an identity, others none"
  }
  assert {
    condition     = toset([for one in aws_launch_template.system[0].tag_specifications : one.resource_type]) == toset(["instance", "volume", "network-interface"]) && alltrue([for one in aws_launch_template.system[0].tag_specifications : one.tags["nim-rollouts/environment"] == "unit"])
    error_message = "what the system group launches carries the environment's tag"
  }
  assert {
    condition     = length(aws_cloudwatch_event_rule.interruption) == 5 && keys(aws_cloudwatch_event_target.interruption) == keys(aws_cloudwatch_event_rule.interruption) && output.interruption_queue_name == "unit-karpenter"
    error_message = "five rules lead into the queue"
  }
  assert {
    condition     = output.karpenter_service_account == "kube-system/karpenter" && contains(keys(aws_iam_role_policy.karpenter), "interruption")
    error_message = "Karpenter has its identity and the right to read the queue"
  }
  assert {
    condition     = length(aws_cloudwatch_log_group.observability) == 0
    error_message = "observability costs, and is asked for"
  }
  assert {
    # What IAM counts: all inline policies of a role together, without white space.
    condition     = sum([for policy in aws_iam_role_policy.karpenter : length(jsonencode(jsondecode(policy.policy)))]) < 10240
    error_message = "Karpenter's policies fit into a role"
  }
  assert {
    condition = alltrue(flatten([for policy in aws_iam_role_policy.karpenter : [
      for statement in jsondecode(policy.policy).Statement : statement.Resource != "*" || alltrue([
        for action in flatten([statement.Action]) : can(regex(":(Describe|Get|List)", action))
      ])
    ]]))
    error_message = "Karpenter may only look at what is not ours"
  }
  assert {
    condition = alltrue(flatten([for name in ["launch", "remove"] : [
      for statement in jsondecode(aws_iam_role_policy.karpenter[name].policy).Statement : length(try(statement.Condition, {})) > 0
      if length(setintersection(flatten([statement.Action]), ["ec2:CreateLaunchTemplate", "ec2:CreateTags", "ec2:TerminateInstances", "ec2:DeleteLaunchTemplate", "iam:PassRole"])) > 0
    ]]))
    error_message = "Karpenter makes, tags and ends what carries the cluster's tag, nothing else"
  }
  assert {
    condition     = length(jsondecode(aws_sqs_queue.interruption[0].policy).Statement[0].Condition.ArnEquals["aws:SourceArn"]) == 5
    error_message = "the queue takes messages of our five rules"
  }
  assert {
    condition     = jsondecode(aws_iam_role.this["karpenter"].assume_role_policy).Statement[0].Condition.StringEquals["aws:RequestTag/eks-cluster-arn"] == "arn:aws:eks:us-west-2:123456789012:cluster/unit"
    error_message = "pod identities are of this cluster alone"
  }
}

run "all_that_can_be_off" {
  command = plan

  variables {
    availability_zones = ["us-west-2b", "us-west-2d"]
    secondary_cidr     = null
    nat_gateways       = "none"
    system_nodes       = { size = 0 }
    addons             = {}
    efs_require_tls    = false
    karpenter          = { enabled = false }
  }

  assert {
    condition     = length(aws_subnet.node) + length(aws_nat_gateway.this) + length(aws_eip.nat) + length(aws_launch_template.system) + length(aws_eks_node_group.system) + length(aws_efs_file_system_policy.models) == 0
    error_message = "nothing of what was switched off"
  }
  assert {
    condition     = length(aws_iam_role_policy.karpenter) + length(aws_eks_pod_identity_association.karpenter) + length(aws_sqs_queue.interruption) + length(aws_cloudwatch_event_rule.interruption) + length(aws_secretsmanager_secret_version.grafana) == 0
    error_message = "nothing of what was switched off"
  }
  assert {
    condition     = alltrue([for subnet in aws_subnet.private : subnet.tags["karpenter.sh/discovery"] == "unit"])
    error_message = "without a secondary block nodes live in the private subnets"
  }
  assert {
    condition     = output.interruption_queue_name == "" && output.karpenter_role_arn == null && output.grafana_secret_name == null
    error_message = "outputs say that there is none"
  }
}

run "settings_of_an_add_on" {
  command = plan

  variables {
    tags = { team = "models" }
    addons = {
      aws-ebs-csi-driver = {
        before_nodes = true
        configuration_values = jsonencode({
          node       = { volumeAttachLimit = 20 }
          controller = { replicaCount = 1, extraVolumeTags = { cost = "7", "nim-rollouts/environment" = "other" } }
        })
      }
      coredns            = { configuration_values = jsonencode({ replicaCount = 3 }) }
      aws-efs-csi-driver = {}
    }
  }

  assert {
    condition = jsondecode(aws_eks_addon.before_nodes["aws-ebs-csi-driver"].configuration_values) == {
      node       = { volumeAttachLimit = 20 }
      controller = { replicaCount = 1, extraVolumeTags = { cost = "7", team = "models", "nim-rollouts/environment" = "unit" } }
    }
    error_message = "volumes of claims carry the environment's tag, beside what the driver is given"
  }
  assert {
    condition     = jsondecode(aws_eks_addon.after_nodes["coredns"].configuration_values) == { replicaCount = 3 } && local.addon_configuration["aws-efs-csi-driver"] == null
    error_message = "others are configured as they are told, or not at all"
  }
}

run "all_that_can_be_on" {
  command = plan

  variables {
    nat_gateways             = "per-zone"
    zone_count               = 4
    cloudwatch_observability = true
    addons                   = { amazon-cloudwatch-observability = { version = "v4.7.0-eksbuild.1" } }
  }

  assert {
    condition     = length(aws_nat_gateway.this) == 4 && length(aws_subnet.node) == 4
    error_message = "a NAT gateway in each of four zones"
  }
  assert {
    condition     = aws_eks_addon.after_nodes["amazon-cloudwatch-observability"].addon_version == "v4.7.0-eksbuild.1" && contains(keys(aws_iam_role.this), "cloudwatch")
    error_message = "the switch leaves an add-on's own settings alone"
  }
  assert {
    condition     = length(aws_cloudwatch_log_group.observability) == 4
    error_message = "the agent's log groups are ours, and go with us"
  }
}

output "environment" {
  description = "Name of the environment this state belongs to."
  value       = var.environment
}

output "region" {
  description = "AWS region of the environment."
  value       = var.region
}

output "cluster_name" {
  description = "Name of the EKS cluster."
  value       = aws_eks_cluster.this.name
}

output "cluster_arn" {
  description = "ARN of the EKS cluster."
  value       = aws_eks_cluster.this.arn
}

output "cluster_endpoint" {
  description = "URL of the cluster's API."
  value       = aws_eks_cluster.this.endpoint
}

output "cluster_version" {
  description = "Kubernetes version that the cluster runs."
  value       = aws_eks_cluster.this.version
}

output "cluster_security_group_id" {
  description = "Security group that EKS made for the control plane and the nodes."
  value       = aws_eks_cluster.this.vpc_config[0].cluster_security_group_id
}

output "configure_kubectl" {
  description = "Command that adds the cluster to your kubeconfig."
  value       = "aws eks update-kubeconfig --region ${var.region} --name ${aws_eks_cluster.this.name}"
}

output "discovery_tag" {
  description = "Tag of the subnets and the security group for nodes, as node classes select them."
  value       = local.discovery_tag
}

output "node_role_arn" {
  description = "IAM role for nodes outside managed node groups (Karpenter's, your own); it has its access entry."
  value       = aws_iam_role.this["node"].arn
}

output "node_role_name" {
  description = "Name of that role, as node classes want it."
  value       = aws_iam_role.this["node"].name
}

output "vpc_id" {
  description = "The environment's VPC."
  value       = aws_vpc.this.id
}

output "public_subnet_ids" {
  description = "Public subnets, one a zone."
  value       = [for zone in local.zones : aws_subnet.public[zone].id]
}

output "private_subnet_ids" {
  description = "Private subnets, one a zone: interfaces of the control plane, internal load balancers and mount targets live here."
  value       = [for zone in local.zones : aws_subnet.private[zone].id]
}

output "node_subnet_ids" {
  description = "Subnets of the nodes and their pods, one a zone; the private ones where there is no secondary block."
  value       = [for zone in local.zones : local.node_subnets[zone].id]
}

output "nat_addresses" {
  description = "Public addresses that the nodes' traffic comes from, by zone: what others must let in."
  value       = { for zone, address in aws_eip.nat : zone => address.public_ip }
}

output "availability_zones" {
  description = "Zones in use."
  value       = local.zones
}

output "efs_file_system_id" {
  description = "File system of the model caches, for the storage class."
  value       = aws_efs_file_system.models.id
  # A class made before its mount targets would give claims that cannot be mounted.
  depends_on = [aws_efs_mount_target.models]
}

output "efs_security_group_id" {
  description = "Security group of the file system's mount targets."
  value       = aws_security_group.efs.id
}

output "karpenter_role_arn" {
  description = "Role that Karpenter's controller takes on by pod identity; null without Karpenter."
  value       = var.karpenter.enabled ? aws_iam_role.this["karpenter"].arn : null
  # A controller that starts before its rights and its association would run into refusals.
  depends_on = [aws_iam_role_policy.karpenter, aws_eks_pod_identity_association.karpenter]
}

output "karpenter_service_account" {
  description = "namespace/name of the service account that has this role; null without Karpenter."
  value       = one([for association in aws_eks_pod_identity_association.karpenter : "${association.namespace}/${association.service_account}"])
}

output "interruption_queue_name" {
  description = "SQS queue for Karpenter's settings.interruptionQueue; empty where there is none."
  value       = one(aws_sqs_queue.interruption[*].name) != null ? aws_sqs_queue.interruption[0].name : ""
}

output "grafana_secret_name" {
  description = "Secret in Secrets Manager whose SecretString is the password of Grafana's user admin; null without it. To see it: aws secretsmanager get-secret-value --secret-id <name> --query SecretString --output text"
  value       = one(aws_secretsmanager_secret.grafana[*].name)
  # A secret without a version could not be read.
  depends_on = [aws_secretsmanager_secret_version.grafana]
}

output "addons" {
  description = "EKS add-ons and the versions they run."
  value       = { for name, addon in merge(aws_eks_addon.before_nodes, aws_eks_addon.after_nodes) : name => addon.addon_version }
}

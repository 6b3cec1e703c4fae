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

output "node_role_arn" {
  description = "IAM role for nodes outside managed node groups; it has its access entry."
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
  description = "Private subnets, one a zone: nodes, pods and mount targets live here."
  value       = [for zone in local.zones : aws_subnet.private[zone].id]
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

output "addons" {
  description = "EKS add-ons and the versions they run."
  value       = { for name, addon in merge(aws_eks_addon.before_nodes, aws_eks_addon.after_nodes) : name => addon.addon_version }
}

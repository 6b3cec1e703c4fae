# The agent would make these itself, without retention and without tags, and leave them behind on destroy.
resource "aws_cloudwatch_log_group" "observability" {
  for_each = var.cloudwatch_observability ? toset(["application", "dataplane", "host", "performance"]) : []

  name              = "/aws/containerinsights/${var.cluster_name}/${each.key}"
  retention_in_days = var.log_retention_days
}

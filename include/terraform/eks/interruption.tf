# What AWS announces about instances (spot reclaims, maintenance, state changes) goes into a queue that Karpenter reads,
# so that it drains a node before it goes.
locals {
  interruption_events = var.karpenter.enabled && var.karpenter.interruption_queue ? {
    health    = { source = "aws.health", type = "AWS Health Event" }
    spot      = { source = "aws.ec2", type = "EC2 Spot Instance Interruption Warning" }
    rebalance = { source = "aws.ec2", type = "EC2 Instance Rebalance Recommendation" }
    state     = { source = "aws.ec2", type = "EC2 Instance State-change Notification" }
    capacity  = { source = "aws.ec2", type = "EC2 Capacity Reservation Instance Interruption Warning" }
  } : {}

  queue_name = "${var.cluster_name}-karpenter"
  queue_arn  = "arn:${local.partition}:sqs:${var.region}:${local.account_id}:${local.queue_name}"
}

resource "aws_cloudwatch_event_rule" "interruption" {
  for_each = local.interruption_events

  # 64 characters are all that a rule's name may have.
  name          = "${var.cluster_name}-${each.key}"
  description   = "${each.value.type}: to Karpenter of ${var.cluster_name}"
  event_pattern = jsonencode({ source = [each.value.source], detail-type = [each.value.type] })
}

data "aws_iam_policy_document" "interruption_queue" {
  count = length(local.interruption_events) > 0 ? 1 : 0

  statement {
    sid       = "EventsOfOurRules"
    actions   = ["sqs:SendMessage"]
    resources = [local.queue_arn]

    principals {
      type        = "Service"
      identifiers = ["events.amazonaws.com"]
    }

    condition {
      test     = "ArnEquals"
      variable = "aws:SourceArn"
      values   = [for key in keys(local.interruption_events) : "arn:${local.partition}:events:${var.region}:${local.account_id}:rule/${var.cluster_name}-${key}"]
    }
  }

  statement {
    sid       = "NothingWithoutTLS"
    effect    = "Deny"
    actions   = ["sqs:*"]
    resources = [local.queue_arn]

    principals {
      type        = "*"
      identifiers = ["*"]
    }

    condition {
      test     = "Bool"
      variable = "aws:SecureTransport"
      values   = ["false"]
    }
  }
}

resource "aws_sqs_queue" "interruption" {
  count = length(local.interruption_events) > 0 ? 1 : 0

  name = local.queue_name
  # A warning is worth nothing after its two minutes.
  message_retention_seconds = 300
  sqs_managed_sse_enabled   = true
  policy                    = data.aws_iam_policy_document.interruption_queue[0].json
}

resource "aws_cloudwatch_event_target" "interruption" {
  for_each = local.interruption_events

  rule      = aws_cloudwatch_event_rule.interruption[each.key].name
  target_id = "karpenter"
  arn       = aws_sqs_queue.interruption[0].arn
}

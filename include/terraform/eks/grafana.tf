# AWS makes the password; terraform hands it on without keeping it: an ephemeral value is in no plan, a write-only
# argument in no state. The next password is asked for by raising grafana.password_version.
ephemeral "aws_secretsmanager_random_password" "grafana" {
  count = var.grafana.enabled ? 1 : 0

  password_length            = 32
  exclude_punctuation        = true # it is pasted into a login form, a shell, a URL
  require_each_included_type = true
}

resource "aws_secretsmanager_secret" "grafana" {
  count = var.grafana.enabled ? 1 : 0

  name        = "${var.cluster_name}/grafana"
  description = "Password of Grafana's user admin in ${var.cluster_name}"
  # At once: a name that waits for its deletion is in the way of the next apply.
  recovery_window_in_days = 0
}

resource "aws_secretsmanager_secret_version" "grafana" {
  count = var.grafana.enabled ? 1 : 0

  secret_id                = aws_secretsmanager_secret.grafana[0].id
  secret_string_wo         = ephemeral.aws_secretsmanager_random_password.grafana[0].random_password
  secret_string_wo_version = var.grafana.password_version
}

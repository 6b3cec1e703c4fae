output "state_bucket" {
  description = "For terraform.state.bucket in include/environments/<environment>.yaml."
  value       = aws_s3_bucket.this["state"].bucket
}

output "ledger_bucket" {
  description = "For store.bucket in include/environments/<environment>.yaml."
  value       = aws_s3_bucket.this["ledger"].bucket
}

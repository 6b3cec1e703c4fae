variable "region" {
  description = "AWS region of the buckets."
  type        = string
  default     = "us-west-2"
}

variable "state_bucket" {
  description = "Name of the bucket for terraform's state. Bucket names are unique over all of AWS: put your account's id or your company's name into it."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$", var.state_bucket))
    error_message = "state_bucket must be 3-63 characters of a-z, 0-9 and '-', beginning and ending with a letter or digit."
  }
}

variable "ledger_bucket" {
  description = "Name of the bucket for claims, ledger records, plans and benchmark reports."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$", var.ledger_bucket))
    error_message = "ledger_bucket must be 3-63 characters of a-z, 0-9 and '-', beginning and ending with a letter or digit."
  }

  validation {
    condition     = var.ledger_bucket != var.state_bucket
    error_message = "state_bucket and ledger_bucket must be two buckets: who may read reports need not read state."
  }
}

variable "kms_key_arn" {
  description = "KMS key that encrypts both buckets. Null: S3's own key."
  type        = string
  default     = null
}

variable "keep_old_versions_days" {
  description = "How long replaced or deleted objects can be fetched back, in days. 0: for ever."
  type        = number
  default     = 365

  validation {
    condition     = var.keep_old_versions_days == 0 || var.keep_old_versions_days >= 7
    error_message = "Keep old versions for a week at least, or 0 for ever."
  }
}

variable "tags" {
  description = "Further tags for the buckets."
  type        = map(string)
  default     = {}
}

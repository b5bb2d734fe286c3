variable "bucket" {
  description = "Name of the bucket that adapters are published to."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$", var.bucket))
    error_message = "A bucket name has 3 to 63 lower case letters, digits, dots and hyphens."
  }
}

variable "prefix" {
  description = "What all adapters lie under, without slashes at its ends: `--to s3://BUCKET/PREFIX`."
  type        = string
  default     = "loras"

  validation {
    condition     = can(regex("^[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*$", var.prefix))
    error_message = "A prefix is one or more names with slashes between them."
  }
}

variable "records_prefix" {
  description = "What the records lie under: `ADAPTERLINE_RECORDS=s3://BUCKET/RECORDS_PREFIX`."
  type        = string
  default     = "records"

  validation {
    condition     = can(regex("^[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*$", var.records_prefix))
    error_message = "A prefix is one or more names with slashes between them."
  }
}

variable "checkpoints" {
  description = "ARNs of the objects that exporters and auditors may read checkpoints from, as arn:aws:s3:::runs/sdxl/*."
  type        = list(string)
  default     = []
}

variable "log_bucket" {
  description = "Name of an existing bucket for the access logs."
  type        = string
}

variable "tags" {
  description = "Tags of all that is made."
  type        = map(string)
  default     = {}
}

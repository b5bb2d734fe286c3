output "to" {
  description = "The destination: `--to`."
  value       = "s3://${aws_s3_bucket.adapters.id}/${var.prefix}"
}

output "records" {
  description = "The record store: ADAPTERLINE_RECORDS."
  value       = "s3://${aws_s3_bucket.adapters.id}/${var.records_prefix}"
}

output "exporter_policy_arn" {
  description = "For the role of the workers' runs."
  value       = aws_iam_policy.exporter.arn
}

output "auditor_policy_arn" {
  description = "For who reads and verifies."
  value       = aws_iam_policy.auditor.arn
}

output "kms_key_arn" {
  description = "Of the key that the bucket encrypts with."
  value       = aws_kms_key.adapters.arn
}

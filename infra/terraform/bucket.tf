# The lifecycle has one truth: the file that is applied to buckets of other servers, too.
locals {
  lifecycle = jsondecode(file("${path.module}/../s3-lifecycle.json"))
}

resource "aws_kms_key" "adapters" {
  description             = "Adapters and records in ${var.bucket}"
  enable_key_rotation     = true
  deletion_window_in_days = 30
  policy                  = data.aws_iam_policy_document.key.json
  tags                    = var.tags
}

resource "aws_s3_bucket" "adapters" {
  #checkov:skip=CKV2_AWS_62:exporters tell of what they publish themselves, by records
  #checkov:skip=CKV_AWS_144:a second region is for whoever applies this to decide
  bucket = var.bucket
  tags   = var.tags

  lifecycle {
    prevent_destroy = true
  }
}

resource "aws_s3_bucket_versioning" "adapters" {
  bucket = aws_s3_bucket.adapters.id

  versioning_configuration {
    status = "Enabled"
  }
}

resource "aws_s3_bucket_server_side_encryption_configuration" "adapters" {
  bucket = aws_s3_bucket.adapters.id

  rule {
    bucket_key_enabled = true

    apply_server_side_encryption_by_default {
      sse_algorithm     = "aws:kms"
      kms_master_key_id = aws_kms_key.adapters.arn
    }
  }
}

resource "aws_s3_bucket_public_access_block" "adapters" {
  bucket                  = aws_s3_bucket.adapters.id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_ownership_controls" "adapters" {
  bucket = aws_s3_bucket.adapters.id

  rule {
    object_ownership = "BucketOwnerEnforced"
  }
}

resource "aws_s3_bucket_lifecycle_configuration" "adapters" {
  #checkov:skip=CKV_AWS_300:it does not see a dynamic block; infra/check.py compares what the blocks come to with the file
  bucket = aws_s3_bucket.adapters.id

  # Noncurrent versions are there only once versioning is.
  depends_on = [aws_s3_bucket_versioning.adapters]

  dynamic "rule" {
    for_each = local.lifecycle.Rules

    content {
      id     = rule.value.ID
      status = rule.value.Status

      filter {
        prefix = rule.value.Filter.Prefix
      }

      dynamic "abort_incomplete_multipart_upload" {
        for_each = try([rule.value.AbortIncompleteMultipartUpload], [])

        content {
          days_after_initiation = abort_incomplete_multipart_upload.value.DaysAfterInitiation
        }
      }

      dynamic "noncurrent_version_expiration" {
        for_each = try([rule.value.NoncurrentVersionExpiration], [])

        content {
          noncurrent_days = noncurrent_version_expiration.value.NoncurrentDays
        }
      }

      dynamic "expiration" {
        for_each = try([rule.value.Expiration], [])

        content {
          expired_object_delete_marker = expiration.value.ExpiredObjectDeleteMarker
        }
      }
    }
  }
}

resource "aws_s3_bucket_logging" "adapters" {
  bucket        = aws_s3_bucket.adapters.id
  target_bucket = var.log_bucket
  target_prefix = "${var.bucket}/"
}

resource "aws_s3_bucket_policy" "adapters" {
  bucket = aws_s3_bucket.adapters.id
  policy = data.aws_iam_policy_document.bucket.json

  depends_on = [aws_s3_bucket_public_access_block.adapters]
}

data "aws_iam_policy_document" "bucket" {
  statement {
    sid       = "OnlyByTls"
    effect    = "Deny"
    actions   = ["s3:*"]
    resources = [aws_s3_bucket.adapters.arn, "${aws_s3_bucket.adapters.arn}/*"]

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

# What docs/destinations.md and docs/retention.md say that publishing and pruning need, below the prefixes and no more.
# There is no policy that deletes versions: what an exporter removes or overwrites comes back from the bucket's versions.
data "aws_caller_identity" "current" {}

locals {
  objects = [
    "${aws_s3_bucket.adapters.arn}/${var.prefix}/*",
    "${aws_s3_bucket.adapters.arn}/${var.records_prefix}/*",
  ]
}

data "aws_iam_policy_document" "exporter" {
  statement {
    sid       = "List"
    actions   = ["s3:ListBucket"]
    resources = [aws_s3_bucket.adapters.arn]

    condition {
      test     = "StringLike"
      variable = "s3:prefix"
      values   = ["${var.prefix}/*", "${var.records_prefix}/*"]
    }
  }

  # Unfinished uploads of an interrupted run, which are taken up or ended.
  statement {
    sid       = "ListUploads"
    actions   = ["s3:ListBucketMultipartUploads"]
    resources = [aws_s3_bucket.adapters.arn]
  }

  statement {
    sid = "Publish"
    actions = [
      "s3:AbortMultipartUpload",
      "s3:DeleteObject",
      "s3:GetObject",
      "s3:PutObject",
      "s3:PutObjectTagging",
    ]
    resources = local.objects
  }

  statement {
    sid       = "Encrypt"
    actions   = ["kms:Decrypt", "kms:GenerateDataKey"]
    resources = [aws_kms_key.adapters.arn]
  }

  dynamic "statement" {
    for_each = length(var.checkpoints) > 0 ? [true] : []

    content {
      sid       = "ReadCheckpoints"
      actions   = ["s3:GetObject"]
      resources = var.checkpoints
    }
  }

  dynamic "statement" {
    for_each = length(var.checkpoints) > 0 ? [true] : []

    content {
      sid       = "ListCheckpoints"
      actions   = ["s3:ListBucket"]
      resources = distinct([for each in var.checkpoints : split("/", each)[0]])
    }
  }
}

data "aws_iam_policy_document" "auditor" {
  statement {
    sid       = "List"
    actions   = ["s3:ListBucket", "s3:ListBucketVersions"]
    resources = [aws_s3_bucket.adapters.arn]
  }

  statement {
    sid       = "Read"
    actions   = ["s3:GetObject", "s3:GetObjectTagging", "s3:GetObjectVersion"]
    resources = local.objects
  }

  statement {
    sid       = "Decrypt"
    actions   = ["kms:Decrypt"]
    resources = [aws_kms_key.adapters.arn]
  }
}

# The account's own policies decide who uses the key; without this statement nobody could, not even to change it.
data "aws_iam_policy_document" "key" {
  #checkov:skip=CKV_AWS_109:a key policy applies to its own key alone
  #checkov:skip=CKV_AWS_111:a key policy applies to its own key alone
  #checkov:skip=CKV_AWS_356:a key policy applies to its own key alone
  statement {
    sid       = "Account"
    actions   = ["kms:*"]
    resources = ["*"]

    principals {
      type        = "AWS"
      identifiers = ["arn:aws:iam::${data.aws_caller_identity.current.account_id}:root"]
    }
  }
}

resource "aws_iam_policy" "exporter" {
  name_prefix = "adapterline-exporter-"
  description = "Publishes adapters to ${var.bucket}"
  policy      = data.aws_iam_policy_document.exporter.json
  tags        = var.tags
}

resource "aws_iam_policy" "auditor" {
  name_prefix = "adapterline-auditor-"
  description = "Reads and verifies the adapters in ${var.bucket}"
  policy      = data.aws_iam_policy_document.auditor.json
  tags        = var.tags
}

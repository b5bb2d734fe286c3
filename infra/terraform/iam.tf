# The actions are those of s3-permissions.json, which tests/infra/test_permissions.py holds real requests against.
# There is no policy that deletes versions: what an exporter removes or overwrites comes back from the bucket's versions.
# No listing depends on a prefix: a request for an object has none, so S3 would answer 403 where one is missing, not 404.
data "aws_caller_identity" "current" {}

locals {
  permissions = jsondecode(file("${path.module}/../s3-permissions.json"))
  objects = [
    "${aws_s3_bucket.adapters.arn}/${var.prefix}/*",
    "${aws_s3_bucket.adapters.arn}/${var.records_prefix}/*",
  ]
}

# An audit proves the effect, too, where it may read the checkpoint.
data "aws_iam_policy_document" "checkpoints" {
  count = length(var.checkpoints) > 0 ? 1 : 0

  statement {
    sid       = "FindCheckpoints"
    actions   = local.permissions.checkpoints.bucket
    resources = distinct([for each in var.checkpoints : split("/", each)[0]])
  }

  statement {
    sid       = "ReadCheckpoints"
    actions   = local.permissions.checkpoints.objects
    resources = var.checkpoints
  }
}

data "aws_iam_policy_document" "exporter" {
  source_policy_documents = data.aws_iam_policy_document.checkpoints[*].json

  statement {
    sid       = "Find"
    actions   = local.permissions.exporter.bucket
    resources = [aws_s3_bucket.adapters.arn]
  }

  statement {
    sid       = "Publish"
    actions   = local.permissions.exporter.objects
    resources = local.objects
  }

  statement {
    sid       = "Encrypt"
    actions   = ["kms:Decrypt", "kms:GenerateDataKey"]
    resources = [aws_kms_key.adapters.arn]
  }
}

data "aws_iam_policy_document" "auditor" {
  source_policy_documents = data.aws_iam_policy_document.checkpoints[*].json

  statement {
    sid       = "Find"
    actions   = local.permissions.auditor.bucket
    resources = [aws_s3_bucket.adapters.arn]
  }

  statement {
    sid       = "Read"
    actions   = local.permissions.auditor.objects
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

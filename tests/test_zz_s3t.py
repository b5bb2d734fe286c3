from pathlib import Path
from tests.validation.test_embeddings import *
from adapterline.destinations.s3 import S3Destination
from tests.validation.test_embeddings import pivotal, exported
def test_s3(exported, tmp_path, s3, bucket):
    package = make_package(manifest_of(exported, "anyone"), exported.folder, tmp_path / "package")
    place = S3Destination(f"s3://{bucket}/p", "anyone")
    place.release(package, place.stage(package), order_of(1))
    keys={o["Key"] for o in s3.list_objects_v2(Bucket=bucket)["Contents"]}
    print(keys)
    for f in exported.bundle.files:
        assert s3.get_object(Bucket=bucket,Key=f"p/anyone/{package.sha12}/{f.path}")["Body"].read()==(exported.folder/f.path).read_bytes()

"""Databases, a bucket, and pictures to ingest."""

from tests.databases import (  # noqa: F401
    database,
    database_url,
    migrated_sqlite,
    postgres_server,
    sqlite_database,
)
from tests.s3 import s3_bucket, s3_server  # noqa: F401
from tests.s3_faults import faulty_s3  # noqa: F401

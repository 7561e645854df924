"""A SQLite catalogue: what is read here is queried on both databases by the tests of `pipeline.storage`."""

from tests.databases import migrated_sqlite, sqlite_database  # noqa: F401

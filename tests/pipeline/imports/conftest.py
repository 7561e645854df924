"""Both databases."""

from tests.databases import (  # noqa: F401
    database,
    database_url,
    migrated_sqlite,
    postgres_database,
    postgres_server,
    sqlite_database,
)

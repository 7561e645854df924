"""Alembic migrations, in the wheel so that an installed copy can upgrade its database (`pipeline.storage.database`).

A migration is written out and never imports `schemas.tables`, which goes on changing. On SQLite `batch_alter_table`
drops triggers without a word: such a migration creates those of `events` and `masks` again (a test compares).
"""

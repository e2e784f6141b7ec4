"""Alembic migrations of the system of record; run by `gateway.database.Database.create`."""

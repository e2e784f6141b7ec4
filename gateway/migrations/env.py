"""Alembic's entry point: it runs on the connection that the caller hands over, and reads no configuration file."""

from alembic import context

from gateway.index_schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()

"""Alembic's entry point. `migrate.py` hands it an open connection; there is no alembic.ini."""

from alembic import context

from fermata.kit.database import metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()

"""How Alembic reaches the catalogue: over the connection that `Catalogue.open` hands it."""

from __future__ import annotations

from alembic import context

from dpac_engine.control.catalogue_schema import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,  # SQLite alters tables by copying them
)
with context.begin_transaction():
    context.run_migrations()

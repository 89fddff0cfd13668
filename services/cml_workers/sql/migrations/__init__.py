"""The database's schema, step by step (Alembic). ``versions/`` is never edited, only added to."""

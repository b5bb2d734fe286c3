"""How the tables of the index came to be, a file for each change; Alembic runs them when an index is opened."""

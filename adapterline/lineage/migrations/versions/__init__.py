"""The migrations, each a file."""

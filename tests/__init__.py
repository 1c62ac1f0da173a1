"""Claims about the running service, on a real PostgreSQL."""

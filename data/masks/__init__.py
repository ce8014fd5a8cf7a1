"""Body masks and couch."""

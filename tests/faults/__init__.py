"""What people, files and machines do wrong, and what becomes of it; docs/reliability.md is the list."""

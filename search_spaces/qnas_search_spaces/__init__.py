"""Built-in search spaces, one family a file."""

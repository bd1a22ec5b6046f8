"""Built-in search strategies, one a file. None imports torch."""

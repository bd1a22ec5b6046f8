"""Built-in supervisions."""

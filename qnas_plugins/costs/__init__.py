"""Built-in costs."""

"""Quantization-aware neural architecture search, built of plugins.

Importing this package loads neither torch nor numpy nor any plugin; see
``docs/architecture.md`` for what lives where.
"""

__version__ = "0.1.0"

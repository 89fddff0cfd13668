"""Generators of documents and definitions; not part of the service."""

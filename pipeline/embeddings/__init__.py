"""Stored encodings: their key, their bytes and their store."""

"""The catalogue in SQL, and the files beside it."""

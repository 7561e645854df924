"""What things are: records, tables, settings and errors. Imports nothing, so that any part of it is light to load."""

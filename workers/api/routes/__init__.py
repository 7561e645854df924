"""One noun per file; every route is thin: rights, one call, one record."""

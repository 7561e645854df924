"""Images in: what lies at a source, decoded into one pixel space, each content once."""

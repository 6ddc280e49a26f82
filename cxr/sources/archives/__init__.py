"""Members of zip and tar archives, read where they are."""

"""Lightning modules that put a backbone to work: one problem a file."""

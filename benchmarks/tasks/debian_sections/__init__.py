"""Text classification on a real corpus that every Debian system carries: package description -> archive section."""

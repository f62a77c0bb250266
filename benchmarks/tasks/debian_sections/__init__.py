"""Text classification on a real corpus that every Debian system carries: a package's short description -> its section."""

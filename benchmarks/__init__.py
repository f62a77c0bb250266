"""Scripts that measure and check pyprune through its public interface. Run from the repository's root."""

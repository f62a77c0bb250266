"""What a run brought, measured: as data, as text."""

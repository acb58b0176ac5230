"""narrowtune."""

"""Training speed and memory beside other tools."""

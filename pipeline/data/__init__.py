"""Where training samples and evaluation samples come from."""

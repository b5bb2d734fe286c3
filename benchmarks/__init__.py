"""What it costs. Each module has a `main` that prints a table of ratios measured in one run on one machine."""

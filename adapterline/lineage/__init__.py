"""Where adapters come from: the record of every run."""

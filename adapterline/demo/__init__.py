"""A base, a training run and what `adapterline demo` does with them, offline."""

"""The steps of the line, one file each: policy, logging and one call into `adapterline`."""

"""One file for each family, or for several that share their layout: tables, named after the families they describe."""

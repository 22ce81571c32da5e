"""Studies: the recipes and the tables of results that come from them."""

"""The command line: one module per verb, each thin: parse, call, print. Heavy imports live inside the functions."""

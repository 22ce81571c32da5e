"""HTML reports of a training or an evaluation, each one file."""

"""Metrics as plain functions on arrays, protocols that name how a number came about, and the report."""

"""The trusted aggregator: averages what the owners trained."""

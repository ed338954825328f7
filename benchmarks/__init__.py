"""Measurements: `python -m benchmarks NAME`, where NAME is a module of this package with a `main(argv)`."""

"""How close the service comes to the practical limit in Python: `python -m benchmarks.run`."""

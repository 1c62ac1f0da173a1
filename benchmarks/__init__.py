"""How close the service comes to what Python can do at all: `python -m benchmarks.run`."""

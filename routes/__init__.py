"""The routes. Signatures are the policy, bodies the work, docstrings the API documentation."""

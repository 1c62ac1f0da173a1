"""The routes. A signature is the policy, a body the deed, a docstring what the API docs say."""

"""The only door to models: Responses items in, what was sampled out.

Read `backend.py` (what a provider must do), `gateway.py` (one call's life), `conversion.py`.
"""

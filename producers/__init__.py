"""Producers: datasets become tasks; and the online trainer's client."""

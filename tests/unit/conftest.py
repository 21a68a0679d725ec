"""Hypothesis tries the same examples each time, and a slow machine does not make a test fail."""

from hypothesis import settings

settings.register_profile("same each time", derandomize=True, deadline=None)
settings.register_profile("search", max_examples=5_000, deadline=None)  # by hand: --hypothesis-profile=search
settings.load_profile("same each time")

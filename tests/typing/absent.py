"""Reported where these libraries are not installed: proof that right.py and wrong.py were checked without them."""

import asyncpg  # wrong: not installed
import django  # wrong: not installed
import pydantic  # wrong: not installed

print(asyncpg, django, pydantic)

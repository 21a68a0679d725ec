"""A module whose import ends the process, as a broken extension's would."""

import os

os._exit(9)

"""The dashboard's rows. Each description says what a panel shows, and what to do about it."""

from .overview import OVERVIEW
from .rewards import REWARD
from .serving import ENGINE, LATENCY, LOAD
from .surroundings import CACHE, EXPLAIN, PROCESS

ROWS = (OVERVIEW, LATENCY, ENGINE, LOAD, REWARD, CACHE, EXPLAIN, PROCESS)

# task: mean
# reward: 1
# The modules that programs import most.

import bisect, collections, copy, datetime, decimal, fractions, functools, hashlib, heapq, io
import itertools, json, math, operator, os, random, re, statistics, string, sys, textwrap, time
import typing, unittest, uuid
from collections import Counter, OrderedDict, defaultdict, deque
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from zoneinfo import ZoneInfo

assert datetime.datetime.strptime("2024-02-29", "%Y-%m-%d").year == 2024
assert decimal.Decimal("0.1") * 3 == decimal.Decimal("0.3")
assert json.loads(json.dumps({"a": [1, None]})) == {"a": [1, None]}


def mean(xs):
    return float(sum(map(fractions.Fraction, xs)) / len(xs))

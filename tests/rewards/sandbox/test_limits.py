import math

import pytest

from rewards.sandbox import Limits


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.inf, math.nan])
def test_a_time_limit_that_is_no_positive_finite_number_is_refused_by_value(seconds):
    with pytest.raises(ValueError, match=f"seconds.*{seconds}"):
        Limits(seconds=seconds)


@pytest.mark.parametrize("name", ["memory_bytes", "output_bytes", "reply_bytes", "open_files"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True])
def test_a_size_that_is_no_positive_int_is_refused_by_name_and_value(name, value):
    with pytest.raises(ValueError, match=f"{name}.*{value}"):
        Limits(**{name: value})


def test_the_defaults_are_accepted():
    assert Limits().seconds == 5.0

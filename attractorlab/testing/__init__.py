"""check_map, which tests the five laws; and toy maps with known answers."""

from attractorlab.testing import toys
from attractorlab.testing.laws import check_map
from attractorlab.testing.toys import Toy, starts

__all__ = ["Toy", "check_map", "starts", "toys"]

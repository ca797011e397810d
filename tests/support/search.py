"""How hypothesis searches: the same examples in every run, however busy the machine is."""

from hypothesis import HealthCheck, settings

seeded = settings(
    derandomize=True, database=None, deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)

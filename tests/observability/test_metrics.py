"""Every metric of the tables is exposed, under its name, with what was counted."""

from __future__ import annotations

import math
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from branchline.runtime.observability.metrics import (
    INSTRUMENTS,
    PREFIX,
    READINGS,
    Metrics,
    table,
)

FACTS: dict[str, Any] = {
    "start_s": 1.5,
    "scheduler": {
        "running": 3,
        "waiting": 2,
        "steps": 10,
        "step_tokens": 100,
        "aborted": 1,
        "retractions": 4,
        "audit_repairs": 0,
    },
    "cache": {
        "hit_rate": 0.25,
        "evicted": 7,
        "capacity_tokens": 1000,
        "free_tokens": 600,
        "cached_tokens": 300,
        "leases": 5,
    },
    "grammar": {"compiling": 1, "cached": 2},
    "adapters": {
        "loaded": 9,
        "slots": 8,
        "slots_used": 6,
        "host_bytes": 1 << 20,
        "loads": 12,
        "load_s": 0.5,
        "evictions": 3,
    },
}


def samples(metrics: Metrics) -> dict[str, dict[tuple[str, ...], float]]:
    """Sample name -> label values (the model's left out) -> value."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(metrics.render().decode()):
        for sample in family.samples:
            labels = tuple(v for k, v in sorted(sample.labels.items()) if k != "model_name")
            assert sample.labels["model_name"] == "tiny"
            found.setdefault(sample.name.removeprefix(PREFIX), {})[labels] = sample.value
    return found


def test_readings_come_from_the_engine_at_each_scrape() -> None:
    facts = {**FACTS, "scheduler": dict(FACTS["scheduler"])}
    metrics = Metrics("tiny", lambda: facts)
    for item in READINGS:
        value: Any = facts
        for key in item.path:
            value = value[key]
        assert samples(metrics)[item.name] == {(): float(value)}, item.name
    facts["scheduler"]["running"] = 9
    assert samples(metrics)["num_running_reqs"] == {(): 9.0}


def test_an_engine_that_does_not_say_a_number_has_no_sample_of_it() -> None:
    found = samples(Metrics("tiny", lambda: {"scheduler": {"running": 1}}))
    assert found["num_running_reqs"] == {(): 1.0}
    assert "cache_hit_rate" not in found


@pytest.mark.parametrize("item", INSTRUMENTS, ids=lambda item: item.name)
def test_an_instrument_shows_what_it_was_fed(item: Any) -> None:
    metrics = Metrics("tiny", dict)
    labels = {name: f"a {name}" for name in item.labels}
    key = tuple(labels[name] for name in sorted(labels))
    if item.kind == "counter":
        metrics.count(item.name, 2.0, **labels)
        metrics.count(item.name, **labels)
        assert samples(metrics)[item.name][key] == 3.0
    elif item.kind == "gauge":
        metrics.change(item.name, 2, **labels)
        metrics.change(item.name, -1, **labels)
        assert samples(metrics)[item.name][key] == 1.0
    else:
        value = item.bounds[1]
        metrics.observe(item.name, value, **labels)
        found = samples(metrics)
        assert found[item.name + "_sum"][key] == pytest.approx(value)
        assert found[item.name + "_count"][key] == 1.0
        buckets = {
            float(sample.labels["le"]): sample.value
            for family in text_string_to_metric_families(metrics.render().decode())
            for sample in family.samples
            if sample.name == PREFIX + item.name + "_bucket"
        }
        assert sorted(buckets) == [*item.bounds, math.inf]
        assert [buckets[bound] for bound in sorted(buckets)][:2] == [0.0, 1.0]


def test_names_are_unique_and_the_docs_table_has_them_all() -> None:
    names = [item.name for item in (*INSTRUMENTS, *READINGS)]
    assert len(set(names)) == len(names)
    assert all(f"`{PREFIX}{name}`" in table() for name in names)


def test_the_wrong_call_on_a_metric_is_our_own_error() -> None:
    metrics = Metrics("tiny", dict)
    with pytest.raises(AssertionError):
        metrics.count("programs_running")

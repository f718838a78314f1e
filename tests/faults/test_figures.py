"""The measurements of links: the settings that they use exist, and they count what arrives."""

import pytest

from tests.faults.figures import SCENARIOS, SMALL_PAGES, Scenario, measure, push_steadily
from tests.faults.recording import THIS, RecordingVK


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_each_scenario_has_valid_settings_of_vk(scenario: Scenario) -> None:
    """A scenario that named another setting would end the whole command."""
    vk = RecordingVK(**scenario.vk_options)
    assert {name: getattr(vk, name) for name in scenario.vk_options} == scenario.vk_options


@pytest.mark.long
def test_steady_traffic_arrives_whole() -> None:
    """On a link without faults nothing is missing, and everything is counted."""
    scenario = Scenario("steady", lambda env: push_steadily(env, 40, 2), SMALL_PAGES, vk_delay=0.01)
    figures = measure(scenario, THIS)
    assert (figures.events, figures.missing, figures.gaps, figures.repeated) == (80, 0, 0, 0)
    assert figures.seconds is not None
    assert figures.out <= 80
    assert 0 < figures.megabytes < 1

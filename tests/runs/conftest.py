"""A configuration and its data as files."""

from tests.experiments.conftest import config as config
